//! CREATE TABLE and DROP TABLE.

use meridian_txn::TxnError;

use super::{run, with_bench};

#[test]
fn tables_come_and_go() {
    with_bench(|mut b| async move {
        let created = b
            .each(
                "create table T (b text not null default 'x', a int primary key, c numeric(10,2));
                 create table if not exists t (a int primary key);
                 create table t (a int primary key);
                 insert into t values ('q', 1, 2.5), (default, 2, null); select * from t;
                 drop table t, t; drop table t; drop table if exists t, u",
            )
            .await;
        assert_eq!(
            created,
            "CREATE TABLE\n\
             CREATE TABLE\n\
             NOTICE 42P07: relation \"t\" already exists, skipping\n\
             ERROR 42P07: relation \"t\" already exists\n\
             INSERT 0 2\n\
             [b|a|c]\n\
             q|1|2.50\n\
             x|2|null\n\
             DROP TABLE\n\
             ERROR 42P01: table \"t\" does not exist\n\
             DROP TABLE\n\
             NOTICE 00000: table \"t\" does not exist, skipping\n\
             NOTICE 00000: table \"u\" does not exist, skipping"
        );
    });
}

#[test]
fn the_catalog_is_tables() {
    with_bench(|mut b| async move {
        b.ok("create table t (a int, b varchar(3) default 'x' not null, primary key (b, a))").await;
        assert_eq!(
            b.ok("select name, type, nullable, default_expression, key_position
                  from meridian.catalog_columns order by table_id, ordinal")
                .await,
            "[name|type|nullable|default_expression|key_position]\n\
             a|integer|f|null|1\n\
             b|character varying(3)|f|'x'|0"
        );
        assert_eq!(
            b.run("delete from meridian.catalog_tables").await,
            "ERROR 42501: permission denied for table catalog_tables | DETAIL: Only the database \
             itself writes to its catalog."
        );
        assert!(b.run("drop table meridian.catalog_names").await.starts_with("ERROR 42501"));
    });
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    with_bench(|mut b| async move {
        for (sql, expected) in [
            ("create table t (a int)", "0A000: a table without a primary key is not supported"),
            ("create table t (a int primary key, b int unique)", "0A000: UNIQUE constraints are"),
            ("create table t (a int primary key check (a > 1))", "0A000: CHECK constraints are"),
            ("create table t (a int primary key references u)", "0A000: FOREIGN KEY constraints"),
            (
                "create table t (a int primary key, foreign key (a) references u)",
                "0A000: FOREIGN KEY constraints",
            ),
            ("create table t (a serial primary key)", "0A000: type serial is not supported"),
            ("create table t (a int primary key) engine = x", "0A000: this table option is not"),
            ("create temp table t (a int primary key)", "0A000: a temporary table is not"),
            ("create table t as select 1", "0A000: CREATE TABLE AS is not"),
            ("create table t (a int primary key, a text)", "42701: column \"a\" specified more"),
            ("create table t (a int primary key, primary key (a))", "42P16: multiple primary keys"),
            (
                "create table t (a int, primary key (b))",
                "42703: column \"b\" named in key does not",
            ),
            ("create table t (a int, primary key (a, a))", "42701: column \"a\" appears twice"),
            ("create table t (a int primary key default b)", "0A000: cannot use column reference"),
            ("create table t (a int primary key default 'x')", "22P02: invalid input syntax"),
            (
                "create table pg_catalog.t (a int primary key)",
                "42501: permission denied for schema",
            ),
            ("create table nope.t (a int primary key)", "3F000: schema \"nope\" does not exist"),
            ("create table t (a jsonb primary key)", "0A000: column \"a\" of type jsonb in a prim"),
            ("create index on t (a)", "0A000: CREATE INDEX is not supported"),
            ("create view v as select 1", "0A000: CREATE VIEW is not supported"),
        ] {
            let output = b.run(sql).await;
            assert!(output.starts_with(&format!("ERROR {expected}")), "{sql}\n{output}");
        }
    });
}

#[test]
fn gateways_that_create_the_same_name_agree() {
    with_bench(|mut b| async move {
        let mut other = b.other_gateway();
        // The other gateway has read its catalog before.
        run(&mut other, "drop table if exists t").await;
        b.ok("create table t (a int primary key)").await;
        assert_eq!(
            run(&mut other, "create table t (a text primary key)").await,
            "ERROR 42P07: relation \"t\" already exists"
        );
        assert_eq!(run(&mut other, "create table u (a int primary key)").await, "CREATE TABLE");
        assert_eq!(b.ok("insert into u values (1); select * from u").await, "INSERT 0 1\n[a]\n1");
        b.tablets.fail_next_write(TxnError::Conflict);
        b.ok("create table v (a int primary key)").await;
    });
}

#[test]
fn a_table_that_another_gateway_made_anew_is_found() {
    with_bench(|mut b| async move {
        b.ok("create table t (a int primary key, b int); insert into t values (1, 2)").await;
        let mut other = b.other_gateway();
        assert_eq!(run(&mut other, "select * from t").await, "[a|b]\n1|2");
        b.ok("drop table t; create table t (a text primary key); insert into t values ('x')").await;
        assert_eq!(run(&mut other, "insert into t values ('y')").await, "INSERT 0 1");
        assert_eq!(run(&mut other, "select * from t").await, "[a]\nx\ny");
        b.ok("drop table t").await;
        let gone = "ERROR 42P01: relation \"t\" does not exist";
        assert_eq!(run(&mut other, "select * from t").await, gone);
        assert_eq!(run(&mut other, "insert into t values ('z')").await, gone);
    });
}
