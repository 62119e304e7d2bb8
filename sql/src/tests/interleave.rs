//! Interleaved tables, and where tables are placed.

use meridian_txn::{Mutation, TxnError, table_range};

use super::{Bench, run, with_bench};

/// Warehouses with districts (NO ACTION), those with customers (CASCADE) and those with orders
/// (CASCADE); and items of warehouses (CASCADE).
const TPCC: &str = "
    create table warehouse (w_id int, name text not null, primary key (w_id));
    create table district (d_w_id int, d_id int, name text, primary key (d_w_id, d_id))
        interleave in parent warehouse;
    create table customer (c_w_id int, c_d_id int, c_id text, primary key (c_w_id, c_d_id, c_id))
        interleave in parent district on delete cascade;
    create table orders (w int, d int, c text, o bigint, primary key (w, d, c, o))
        with (interleave_in_parent = 'customer', interleave_on_delete = 'CASCADE');
    create table stock (s_w_id int, item int, primary key (s_w_id, item))
        interleave in parent public.warehouse on delete cascade with (fillfactor = 70)";

const ROWS: &str = "
    insert into warehouse values (1, 'one'), (2, 'two'), (3, 'three'), (-7, 'minus');
    insert into district values (1, 1, 'a'), (1, 2, 'b'), (2, 1, 'c'), (3, 1, 'd');
    insert into customer values (1, 1, 'ann'), (1, 1, 'bob'), (1, 2, 'ann'), (2, 1, 'cid');
    insert into orders values (1, 1, 'ann', 1), (1, 1, 'ann', 2), (1, 2, 'ann', 7), (2, 1, 'cid', 9);
    insert into stock values (1, 100), (1, 101), (2, 100), (3, 100), (-7, 5)";

async fn tpcc(b: &mut Bench) {
    b.ok(TPCC).await;
    b.ok(ROWS).await;
}

async fn counts(b: &mut Bench) -> String {
    let mut counts = Vec::new();
    for table in ["warehouse", "district", "customer", "orders", "stock"] {
        let rows = b.ok(&format!("select count(*) from {table}")).await;
        counts.push(rows.lines().last().expect("a row").to_owned());
    }
    counts.join(" ")
}

#[test]
fn each_table_reads_its_own_rows() {
    with_bench(|mut b| async move {
        tpcc(&mut b).await;
        for (sql, expected) in [
            ("select w_id from warehouse", "[w_id]\n-7\n1\n2\n3"),
            ("select w_id from warehouse order by w_id desc limit 2", "[w_id]\n3\n2"),
            ("select w_id from warehouse limit 3", "[w_id]\n-7\n1\n2"),
            ("select name from warehouse where w_id = 2", "[name]\ntwo"),
            ("select name from warehouse where w_id > 1", "[name]\ntwo\nthree"),
            ("select d_w_id, d_id from district", "[d_w_id|d_id]\n1|1\n1|2\n2|1\n3|1"),
            ("select name from district where d_w_id = 1", "[name]\na\nb"),
            ("select name from district where d_w_id = 1 and d_id >= 2", "[name]\nb"),
            ("select name from district where d_w_id in (3, 1) and d_id = 1", "[name]\na\nd"),
            ("select name from district where d_id = 1 limit 2", "[name]\na\nc"),
            (
                "select d_w_id, d_id from district order by d_w_id desc, d_id desc limit 3",
                "[d_w_id|d_id]\n3|1\n2|1\n1|2",
            ),
            ("select c_id from customer where c_w_id = 1 and c_d_id = 1", "[c_id]\nann\nbob"),
            ("select o from orders order by w desc, d desc, c desc, o desc", "[o]\n9\n7\n2\n1"),
            ("select o from orders where w = 1 and d = 1 and c = 'ann' and o = 2", "[o]\n2"),
            ("select item from stock where s_w_id between 1 and 2", "[item]\n100\n101\n100"),
            (
                "select w.name, count(o) from warehouse w left join orders o on o.w = w.w_id
                 group by 1 order by 1",
                "[name|count]\nminus|0\none|3\nthree|0\ntwo|1",
            ),
        ] {
            assert_eq!(b.ok(sql).await, expected, "{sql}");
        }
    });
}

#[test]
fn key_ranges_are_tight() {
    with_bench(|mut b| async move {
        tpcc(&mut b).await;
        for (sql, keys, read) in [
            ("warehouse where w_id = 1", "w_id = 1", 1),
            ("district where d_w_id = 1", "d_w_id = 1", 2),
            ("district where d_w_id = 1 and d_id = 2", "d_w_id = 1 AND d_id = 2", 1),
            ("district where d_w_id = 1 and d_id > 1", "d_w_id = 1 AND d_id >= 2", 1),
            ("customer where c_w_id = 1 and c_d_id = 1", "c_w_id = 1 AND c_d_id = 1", 2),
            ("orders where w = 1", "w = 1", 3),
            (
                "orders where w = 1 and d = 1 and c = 'ann' and o <= 1",
                "w = 1 AND d = 1 AND c = 'ann' AND o <= 1",
                1,
            ),
        ] {
            let plan = b.ok(&format!("explain select * from {sql}")).await;
            assert!(plan.contains(&format!("Keys: {keys}\n")), "{sql}\n{plan}");
            let before = b.tablets.reads.load(std::sync::atomic::Ordering::Relaxed);
            b.ok(&format!("select * from {sql}")).await;
            let after = b.tablets.reads.load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!(after - before, read, "{sql}");
        }
        let plan = b.ok("explain select * from district").await;
        assert!(plan.contains("Tablet t2,") && plan.contains("Keys: all"), "{plan}");
    });
}

#[test]
fn a_scan_leaps_over_the_rows_of_other_tables() {
    with_bench(|mut b| async move {
        b.ok("create table p (a int primary key);
              create table c (a int, b int, primary key (a, b)) interleave in parent p")
            .await;
        b.ok("insert into p select * from generate_series(1, 5)").await;
        b.ok("insert into c select a, b from p, generate_series(1, 1000) as g(b)").await;
        let reads = || b.tablets.reads.load(std::sync::atomic::Ordering::Relaxed);
        let before = reads();
        let session = &mut b.session;
        assert_eq!(run(session, "select count(*), sum(a) from p").await, "[count|sum]\n5|15");
        let all = "select a from p order by a desc limit 4";
        assert_eq!(run(session, all).await, "[a]\n5\n4\n3\n2");
        let read = b.tablets.reads.load(std::sync::atomic::Ordering::Relaxed) - before;
        // The first chunk of each scan goes as far as a chunk does.
        assert!(read < 2_000, "{read} rows read");
        assert_eq!(b.ok("select count(*), sum(b) from c").await, "[count|sum]\n5000|2502500");
        let last = "select a, b from c order by a desc, b desc limit 1";
        assert_eq!(b.ok(last).await, "[a|b]\n5|1000");
    });
}

#[test]
fn a_row_needs_the_row_above_it() {
    with_bench(|mut b| async move {
        tpcc(&mut b).await;
        assert_eq!(
            b.run("insert into district values (1, 3, 'x'), (9, 1, 'y')").await,
            "ERROR 23503: insert or update on table \"district\" violates foreign key constraint \
             \"district_interleave_fkey\" | DETAIL: Key (d_w_id)=(9) is not present in table \
             \"warehouse\". | HINT: \"district\" is interleaved in \"warehouse\": its rows lie \
             below rows of that table. | schema: public | table: district | constraint: \
             district_interleave_fkey"
        );
        for sql in [
            "insert into customer values (3, 2, 'x')",
            "insert into orders values (1, 1, 'zoe', 1)",
            "insert into orders select w, d, c || '!', o from orders",
            "update customer set c_d_id = 5 where c_id = 'bob'",
        ] {
            let output = b.run(sql).await;
            assert!(
                output.starts_with("ERROR 23503: insert or update on table"),
                "{sql}\n{output}"
            );
        }
        assert_eq!(counts(&mut b).await, "4 4 4 4 5");
        b.ok("insert into district values (1, 3, 'x'); insert into customer values (1, 3, 'y')")
            .await;
        b.ok("update customer set c_d_id = 3 where c_w_id = 1 and c_d_id = 1 and c_id = 'bob'")
            .await;
        b.ok("insert into orders select w, d, c, o + 100 from orders").await;
        assert_eq!(counts(&mut b).await, "4 5 5 8 5");
    });
}

#[test]
fn a_row_with_rows_below_stays() {
    with_bench(|mut b| async move {
        tpcc(&mut b).await;
        assert_eq!(
            b.run("delete from warehouse where w_id = 2").await,
            "ERROR 23503: update or delete on table \"warehouse\" violates foreign key constraint \
             \"district_interleave_fkey\" on table \"district\" | DETAIL: Key (w_id)=(2) is still \
             referenced from table \"district\". | schema: public | table: district | constraint: \
             district_interleave_fkey"
        );
        for sql in [
            "delete from warehouse",
            "update warehouse set w_id = 8 where w_id = 2",
            // What is deleted below doesn't move along.
            "update district set d_id = 8 where d_w_id = 1 and d_id = 1",
            "update customer set c_id = 'eve' where c_id = 'cid'",
        ] {
            let output = b.run(sql).await;
            assert!(output.starts_with("ERROR 23503: update or delete on"), "{sql}\n{output}");
        }
        assert_eq!(counts(&mut b).await, "4 4 4 4 5");
        // Nothing lies below these, or their keys stay.
        b.ok("update customer set c_id = 'eve' where c_id = 'bob'").await;
        b.ok("update district set d_id = 8 where d_w_id = 3").await;
        b.ok("update warehouse set name = upper(name), w_id = w_id").await;
        b.ok("update district set d_id = 3 - d_id where d_w_id = 1").await;
        assert_eq!(counts(&mut b).await, "4 4 4 4 5");
        assert_eq!(
            b.ok("select d_id, name from district where d_w_id = 1").await,
            "[d_id|name]\n1|b\n2|a"
        );
    });
}

#[test]
fn cascades_reach_all_that_lies_below() {
    with_bench(|mut b| async move {
        tpcc(&mut b).await;
        b.tablets.take_writes();
        assert_eq!(b.ok("delete from district where d_w_id = 1 and d_id = 1").await, "DELETE 1");
        let writes = b.tablets.take_writes();
        assert_eq!(writes.len(), 1, "one write, whole or not at all");
        let deletes = |m: &Mutation| matches!(m, Mutation::Delete { .. });
        assert_eq!(writes[0].mutations.len(), 5, "a district, two customers, two orders");
        assert!(writes[0].mutations.iter().all(deletes));
        assert_eq!(counts(&mut b).await, "4 3 2 2 5");
        assert_eq!(b.ok("select w, d, o from orders").await, "[w|d|o]\n1|2|7\n2|1|9");
        // Stock goes with a warehouse, districts keep it: all or nothing.
        let output = b.run("delete from warehouse where w_id in (-7, 3)").await;
        assert!(output.starts_with("ERROR 23503"), "{output}");
        assert_eq!(counts(&mut b).await, "4 3 2 2 5");
        assert_eq!(b.ok("delete from warehouse where w_id = -7").await, "DELETE 1");
        assert_eq!(b.ok("delete from district").await, "DELETE 3");
        assert_eq!(counts(&mut b).await, "3 0 0 0 4");
        assert_eq!(b.ok("delete from warehouse").await, "DELETE 3");
        assert_eq!(counts(&mut b).await, "0 0 0 0 0");
    });
}

#[test]
fn one_child_costs_one_read() {
    with_bench(|mut b| async move {
        tpcc(&mut b).await;
        b.tablets.take_writes();
        b.tablets.take_gets();
        b.ok("insert into customer values (1, 1, 'x'), (1, 1, 'y'), (1, 2, 'x')").await;
        let gets = b.tablets.take_gets();
        assert_eq!(gets.len(), 1, "one request");
        assert_eq!(gets[0].len(), 2, "each row above once");
        assert!(b.tablets.take_fragments().is_empty());
        let writes = b.tablets.take_writes();
        let (warehouse, district, customer) = ((100, 5), (101, 3), (102, 2));
        assert_eq!(writes[0].schema, [warehouse, district, customer]);
        b.ok("update customer set c_id = c_id; update district set name = 'x'").await;
        b.ok("delete from orders").await;
        assert!(b.tablets.take_gets().is_empty(), "nothing came or went above anything");
        assert_eq!(b.tablets.take_fragments().len(), 3);
    });
}

#[test]
fn what_happens_meanwhile_is_noticed() {
    with_bench(|mut b| async move {
        tpcc(&mut b).await;
        // Read, then refused: everything is read again.
        for _ in 0..2 {
            b.tablets.fail_next_write(TxnError::Conflict);
        }
        b.ok("insert into customer values (3, 1, 'x')").await;
        b.tablets.fail_next_write(TxnError::Conflict);
        assert_eq!(b.ok("delete from district where d_w_id = 3").await, "DELETE 1");
        b.tablets.take_writes();
        let output = b.run("insert into customer values (3, 1, 'x')").await;
        assert!(output.starts_with("ERROR 23503"), "{output}");
        let output = b.run("delete from warehouse where w_id = 1").await;
        assert!(output.starts_with("ERROR 23503"), "{output}");
        assert!(b.tablets.take_writes().is_empty(), "nothing was sent");
        // In a block, what it has written counts.
        b.ok("begin; insert into district values (3, 9); insert into customer values (3, 9, 'x')")
            .await;
        let output = b.run("delete from district where d_w_id = 3; commit").await;
        assert_eq!(output, "DELETE 1\nCOMMIT");
    });
}

#[test]
fn gateways_with_old_catalogs_orphan_nothing() {
    with_bench(|mut b| async move {
        b.ok("create table p (a int primary key); insert into p values (1), (2), (3)").await;
        let mut old = b.other_gateway();
        let mut older = b.other_gateway();
        assert_eq!(run(&mut old, "select count(*) from p").await, "[count]\n3");
        assert_eq!(run(&mut older, "select count(*) from p").await, "[count]\n3");
        b.ok("create table c (a int, b int, primary key (a, b)) interleave in parent p").await;
        // There is no row of c yet: whoever doesn't know it does no harm.
        assert_eq!(run(&mut old, "delete from p where a = 3").await, "DELETE 1");
        let output = b.run("insert into c values (3, 1)").await;
        assert!(output.starts_with("ERROR 23503"), "{output}");
        b.ok("insert into c values (1, 1)").await;
        let output = run(&mut old, "delete from p where a = 1").await;
        assert!(output.starts_with("ERROR 23503"), "{output}");
        // A table below that: its grandparent's rows are safe too.
        b.ok("create table g (a int, b int, c int, primary key (a, b, c))
              interleave in parent c on delete cascade")
            .await;
        b.ok("insert into g values (1, 1, 1)").await;
        let output = run(&mut older, "update p set a = 7 where a = 1").await;
        assert!(output.starts_with("ERROR 23503"), "{output}");
        assert_eq!(run(&mut old, "delete from c").await, "DELETE 1");
        assert_eq!(b.ok("select count(*) from g").await, "[count]\n0");
        // What was dropped keeps nobody from deleting.
        b.ok("insert into c values (2, 2)").await;
        b.ok("drop table c cascade").await;
        assert_eq!(run(&mut old, "delete from p where a = 2").await, "DELETE 1");
        assert!(run(&mut older, "insert into c values (1, 5)").await.starts_with("ERROR 42P01"));
        assert_eq!(run(&mut older, "delete from p").await, "DELETE 1");
    });
}

#[test]
fn parents_and_children_are_created_and_dropped_in_order() {
    with_bench(|mut b| async move {
        tpcc(&mut b).await;
        b.ok("create table lone (a int primary key)").await;
        assert_eq!(
            b.run("drop table warehouse").await,
            "ERROR 2BP01: cannot drop table warehouse because other objects depend on it | DETAIL: \
             table district depends on table warehouse\n\
             table customer depends on table district\n\
             table orders depends on table customer\n\
             table stock depends on table warehouse | HINT: Use DROP ... CASCADE to drop the \
             dependent objects too."
        );
        let output = b.run("drop table lone, customer, district").await;
        assert!(
            output.starts_with("ERROR 2BP01: cannot drop desired object(s)")
                && output.contains("table orders depends on table customer |"),
            "{output}"
        );
        assert_eq!(counts(&mut b).await, "4 4 4 4 5");
        assert_eq!(
            b.run("drop table customer cascade").await,
            "DROP TABLE\nNOTICE 00000: drop cascades to table orders"
        );
        let mut fences = b.tablets.take_calls();
        fences.retain(|call| call.starts_with("fence"));
        let range = table_range(100);
        let fence = |table: u64| format!("fence {range:?} {table} {}", u64::MAX);
        assert_eq!(fences, [fence(102), fence(103)]);
        // The rows that are left are nobody's.
        b.ok("create table customer (a int, b int, c text, primary key (a, b, c))
              interleave in parent district")
            .await;
        assert_eq!(b.ok("select * from customer").await, "[a|b|c]");
        assert_eq!(b.ok("select count(*) from district").await, "[count]\n4");
        b.ok("delete from district where d_w_id = 3").await;
        assert_eq!(
            b.run("drop table if exists nothing, warehouse cascade").await,
            "DROP TABLE\n\
             NOTICE 00000: table \"nothing\" does not exist, skipping\n\
             NOTICE 00000: drop cascades to 3 other objects"
        );
        assert_eq!(b.ok("select name from meridian.catalog_tables").await, "[name]\nlone");
        assert_eq!(b.tablets.take_calls(), [""; 0], "a root's tablets are retired");
        // All that is named goes, in whatever order.
        b.ok(TPCC).await;
        b.ok("drop table stock, customer, warehouse, district, orders").await;
        assert_eq!(b.ok("select name from meridian.catalog_tables").await, "[name]\nlone");
    });
}

#[test]
fn a_key_must_begin_with_the_parents() {
    with_bench(|mut b| async move {
        b.ok("create table p (a int, b varchar(5), primary key (a, b))").await;
        assert_eq!(
            b.run(
                "create table c (a int, b varchar(6), c int, primary key (a, b, c))
                   interleave in parent p"
            )
            .await,
            "ERROR 42P16: the primary key of \"c\" must begin with that of its parent \"p\" | \
             DETAIL: Column 2 of its key is \"b\" of type character varying(6); the parent's is \
             \"b\" of type character varying(5). | HINT: The parent's key is (a integer, b \
             character varying(5)). Begin the key with columns of the same types."
        );
        for (sql, expected) in [
            ("(a int primary key) interleave in parent p", "42P16: the primary key of \"c\" must"),
            (
                "(a int, b varchar(5), primary key (b, a)) interleave in parent p",
                "42P16: the primary key of \"c\" must",
            ),
            ("(a int primary key) interleave in parent q", "42P01: relation \"q\" does not exist"),
            ("(a int primary key) interleave in parent c", "42P01: relation \"c\" does not exist"),
            (
                "(a int primary key) interleave in parent meridian.catalog_tables",
                "42809: \"catalog_tables\" is a table of the catalog",
            ),
            (
                "(a int primary key) interleave in parent meridian.nodes",
                "42809: \"nodes\" is not a table",
            ),
            (
                "(a int primary key) interleave in parent p with (voters = 3)",
                "42P16: option \"voters\" of a table that is interleaved",
            ),
            (
                "(a int primary key) with (interleave_on_delete = 'cascade')",
                "42P16: ON DELETE needs a parent",
            ),
            (
                "(a int primary key) with (interleave_in_parent = 'p;q')",
                "22023: invalid value for option \"interleave_in_parent\": \"p;q\"",
            ),
            (
                "(a int primary key) with (interleave_in_parent = p, interleave_on_delete = 'no')",
                "22023: invalid value for option \"interleave_on_delete\": \"no\"",
            ),
            (
                "(a int primary key) interleave in parent p with (interleave_in_parent = 'p')",
                "22023: parameter \"interleave_in_parent\" specified more than once",
            ),
            ("(a int primary key) interleave in p", "42601: syntax error at or near \"p\""),
            ("(a int primary key) interleave", "42601: syntax error at end of input"),
            (
                "(a int primary key) interleave in parent p on delete set null",
                "42601: syntax error at or near \"set\"",
            ),
        ] {
            let output = b.run(&format!("create table c {sql}")).await;
            assert!(output.starts_with(&format!("ERROR {expected}")), "{sql}\n{output}");
        }
        // Names may differ, and the keys may be the same.
        b.ok("create table c (x int, y varchar(5), primary key (x, y))
              interleave in parent p on delete no action")
            .await;
        b.ok("create table if not exists c (a int primary key) interleave in parent p").await;
        b.ok("insert into p values (1, 'x'), (2, 'y'); insert into c values (1, 'x')").await;
        assert_eq!(b.ok("select * from c").await, "[x|y]\n1|x");
        assert_eq!(b.ok("select * from p").await, "[a|b]\n1|x\n2|y");
        assert!(b.run("insert into c values (1, 'y')").await.starts_with("ERROR 23503"));
        for level in 0..15 {
            let parent = if level == 0 { "c".to_owned() } else { format!("l{}", level - 1) };
            b.ok(&format!(
                "create table l{level} (x int, y varchar(5), primary key (x, y))
                 interleave in parent {parent}"
            ))
            .await;
        }
        let deeper = "create table l15 (x int, y varchar(5), primary key (x, y))
                      interleave in parent l14";
        assert!(b.run(deeper).await.starts_with("ERROR 54000: tables can be interleaved at most"));
    });
}

#[test]
fn changes_of_the_catalog_by_several_gateways() {
    with_bench(|mut b| async move {
        b.ok("create table p (a int primary key)").await;
        let mut other = b.other_gateway();
        run(&mut other, "select * from p").await;
        let create = |name: &str| {
            format!("create table {name} (a int, b int, primary key (a, b)) interleave in parent p")
        };
        b.ok(&create("c")).await;
        // Its catalog knows nothing below p.
        assert!(run(&mut other, "drop table p").await.starts_with("ERROR 2BP01"));
        b.ok("drop table c").await;
        // Its catalog knows what is there no longer.
        assert_eq!(run(&mut other, "drop table p").await, "DROP TABLE");
        let output = b.run(&create("c")).await;
        assert!(output.starts_with("ERROR 42P01"), "{output}");
        b.ok("create table p (a int primary key)").await;
        b.tablets.fail_next_write(TxnError::Conflict);
        assert_eq!(run(&mut other, &create("c")).await, "CREATE TABLE");
        b.ok(&create("d")).await;
        assert_eq!(
            b.ok("select name, version, root_id = table_id, parent_id is null, on_delete
                  from meridian.catalog_tables order by table_id")
                .await
                .lines()
                .skip(1)
                .collect::<Vec<_>>(),
            ["p|3|t|t|null", "c|1|f|f|no action", "d|1|f|f|no action"]
        );
    });
}

#[test]
fn clients_see_a_foreign_key() {
    with_bench(|mut b| async move {
        b.ok(TPCC).await;
        assert_eq!(
            b.ok("select conname, conrelid::regclass, confrelid::regclass, conkey, confkey,
                         confdeltype, pg_get_constraintdef(oid, true)
                  from pg_constraint where contype = 'f' order by conname limit 2")
                .await
                .lines()
                .skip(1)
                .collect::<Vec<_>>(),
            [
                "customer_interleave_fkey|customer|district|{1,2}|{1,2}|c|\
                 FOREIGN KEY (c_w_id, c_d_id) REFERENCES district(d_w_id, d_id) ON DELETE CASCADE",
                "district_interleave_fkey|district|warehouse|{1}|{1}|a|\
                 FOREIGN KEY (d_w_id) REFERENCES warehouse(w_id)",
            ]
        );
        // As psql asks for what refers to a table.
        assert_eq!(
            b.ok("SELECT conname, conrelid::pg_catalog.regclass AS ontable
                  FROM pg_catalog.pg_constraint c
                  WHERE confrelid IN (SELECT pg_catalog.pg_partition_ancestors('warehouse')
                                      UNION ALL VALUES ('warehouse'::pg_catalog.regclass))
                  AND contype = 'f' AND conparentid = 0 ORDER BY conname")
                .await,
            "[conname|ontable]\ndistrict_interleave_fkey|district\nstock_interleave_fkey|stock"
        );
        assert_eq!(
            b.ok("select k.column_name, k.position_in_unique_constraint, r.delete_rule,
                         r.unique_constraint_name, u.table_name
                  from information_schema.referential_constraints r
                  join information_schema.key_column_usage k using (constraint_name)
                  join information_schema.constraint_column_usage u using (constraint_name)
                  where k.table_name = 'stock'")
                .await
                .lines()
                .last(),
            Some("s_w_id|1|CASCADE|warehouse_pkey|warehouse")
        );
        assert_eq!(
            b.ok("select relname from pg_class where relhastriggers order by 1").await,
            "[relname]\ncustomer\ndistrict\norders\nstock\nwarehouse"
        );
    });
}

#[test]
fn bounds_name_the_table_of_a_key() {
    with_bench(|mut b| async move {
        tpcc(&mut b).await;
        let snapshot = b.engine.catalog.snapshot();
        let key = |name: &str, values: &[i32]| {
            let table = snapshot.table("public", name).expect("a table");
            let values: Vec<_> =
                values.iter().map(|v| crate::ScalarValue::Int32(Some(*v))).collect();
            crate::codec::row_codec(table).and_then(|codec| codec.key_of(&values)).expect("a key")
        };
        for (key, table, bound) in [
            (key("warehouse", &[]), "warehouse", "warehouse"),
            (key("warehouse", &[5]), "warehouse", "warehouse (5)"),
            (key("district", &[5]), "district", "district (5)"),
            (key("district", &[5, -3]), "district", "district (5, -3)"),
            (key("stock", &[5, 1]), "stock", "stock (5, 1)"),
            (table_range(100).end.expect("an end"), "?", "table 101"),
        ] {
            let found = crate::explain::table_of_key(&snapshot, &key);
            assert_eq!(found.map_or("?", |found| found.name.as_str()), table);
            assert_eq!(crate::explain::readable_bound(&snapshot, Some(&key)), bound);
        }
    });
}

#[test]
fn tables_say_where_they_are_placed() {
    with_bench(|mut b| async move {
        b.ok("create table t (a int primary key) with (leader_region = 'eu-west', voters = 5,
              regions = '{eu-west,us-east}', read_only = '{us-west}', fillfactor = 70,
              autovacuum_enabled = false)")
            .await;
        let tablets = &b.tablets as &dyn crate::tablets::Tablets;
        let placed = tablets.tablets(&table_range(100)).await.expect("a tablet").remove(0);
        let placement = placed.placement;
        assert_eq!((placement.voters, placement.leader_region.as_deref()), (5, Some("eu-west")));
        assert_eq!((placement.regions.len(), placement.read_only), (2, vec!["us-west".to_owned()]));
        for sql in [
            "alter table t set (leader_region = us_west, voters = '3')",
            "alter table only t set (read_only = '{}')",
            "alter table t reset (leader_region, voters, regions, read_only)",
        ] {
            assert_eq!(b.ok(sql).await, "ALTER TABLE", "{sql}");
        }
        let range = table_range(100);
        let place = |change: &str| format!("place {range:?} PlacementChange {{ {change} }}");
        assert_eq!(
            b.tablets.take_calls(),
            [
                place(
                    "voters: Some(3), regions: None, read_only: None, leader_region: \
                     Some(Some(\"us_west\"))"
                ),
                place("voters: None, regions: None, read_only: Some([]), leader_region: None"),
                place(
                    "voters: Some(3), regions: Some([]), read_only: Some([]), leader_region: \
                     Some(None)"
                ),
            ]
        );
        assert_eq!(b.ok("alter table t set (fillfactor = 50)").await, "ALTER TABLE");
        assert_eq!(
            b.ok("alter table if exists u set (voters = 3)").await,
            "ALTER TABLE\nNOTICE 00000: relation \"u\" does not exist, skipping"
        );
        b.ok("create table c (a int, b int, primary key (a, b)) interleave in parent t").await;
        for (sql, expected) in [
            (
                "alter table t set (colour = 'red')",
                "22023: unrecognized parameter \"colour\" | HINT: The options of a table are \
                 leader_region, voters, regions, read_only, interleave_in_parent, \
                 interleave_on_delete.",
            ),
            ("alter table t set (voters = 0)", "22023: invalid value for option \"voters\": \"0\""),
            ("alter table t set (voters = 256)", "22023: invalid value for option \"voters\""),
            ("alter table t set (voters = many)", "22023: invalid value for option \"voters\""),
            ("alter table t set (voters = 1 + 2)", "22023: invalid value for option \"voters\""),
            ("alter table t set (regions = 'eu')", "22023: invalid value for option \"regions\""),
            ("alter table t set (regions = '{a,a}')", "22023: invalid value for option"),
            ("alter table t set (regions = '{a,NULL}')", "22023: invalid value for option"),
            ("alter table t set (regions = '{{a},{b}}')", "22023: invalid value for option"),
            ("alter table t set (leader_region = '')", "22023: invalid value for option"),
            ("alter table t set (leader_region = eu-west)", "22023: invalid value for option"),
            ("alter table t set (voters = 1, voters = 3)", "22023: parameter \"voters\" specified"),
            ("alter table t set (interleave_in_parent = 'c')", "42P16: a table can't be interlea"),
            ("alter table t reset (interleave_in_parent)", "22023: parameter"),
            ("alter table t reset (voters = 3)", "42601: syntax error at or near \"reset\""),
            ("alter table nope set (voters = 3)", "42P01: relation \"nope\" does not exist"),
            ("alter table meridian.nodes set (voters = 3)", "42809: \"nodes\" is not a table"),
            ("alter table meridian.catalog_names set (voters = 3)", "42501: permission denied"),
            (
                "alter table c set (voters = 3)",
                "42809: \"c\" is interleaved in \"t\" | DETAIL: Its rows lie where those of its \
                 parent are. | HINT: Set \"voters\" on \"t\".",
            ),
            ("alter table t add column b int", "0A000: ALTER TABLE is not supported but for"),
            ("create table u (a int primary key) with (voters = -1)", "22023: invalid value"),
            ("create table u (a int primary key) with (x = 1)", "22023: unrecognized parameter"),
        ] {
            let output = b.run(sql).await;
            assert!(output.starts_with(&format!("ERROR {expected}")), "{sql}\n{output}");
        }
        assert_eq!(b.tablets.take_calls(), [""; 0], "nothing else was asked");
    });
}
