//! INSERT, UPDATE and DELETE.

use meridian_txn::{Mutation, TxnError};

use super::{run, run_with, with_bench};
use crate::ScalarValue;
use crate::types::PgType;

const TABLE: &str = "create table t (a int, b text, c int not null default 7, primary key (a, b))";

#[test]
fn rows_are_inserted_updated_and_deleted() {
    with_bench(|mut b| async move {
        b.ok(TABLE).await;
        let output = b
            .each(
                "insert into t values (1, 'x', 10), (1, 'y', 7), (2, 'x', default);
                 insert into t (c, b, a) values (1 + 2, upper('z'), 3);
                 insert into t default values;
                 update t set c = c * 2 where a = 1;
                 update t set c = default where b = 'Z';
                 update t as u set (c, b) = (u.c + 1, 'w') where u.a = 2;
                 delete from t where c = 14;
                 delete from t where false;
                 update t set c = 0 where a = 99;
                 select * from t order by a, b",
            )
            .await;
        assert_eq!(
            output,
            "INSERT 0 3\n\
             INSERT 0 1\n\
             ERROR 23502: null value in column \"a\" of relation \"t\" violates not-null constraint \
             | DETAIL: Failing row contains (null, null, 7). | schema: public | table: t | column: a\n\
             UPDATE 2\n\
             UPDATE 1\n\
             UPDATE 1\n\
             DELETE 1\n\
             DELETE 0\n\
             UPDATE 0\n\
             [a|b|c]\n\
             1|x|20\n\
             2|w|8\n\
             3|Z|7"
        );
    });
}

#[test]
fn errors_are_postgresqls_and_change_nothing() {
    with_bench(|mut b| async move {
        b.ok(TABLE).await;
        b.ok("insert into t values (1, 'x', 1)").await;
        b.tablets.take_writes();
        for (sql, expected) in [
            (
                "insert into t values (2, 'x', 1), (1, 'x', 2)",
                "23505: duplicate key value violates unique constraint \"t_pkey\" | DETAIL: Key (a, \
                 b)=(1, x) already exists. | schema: public | table: t | constraint: t_pkey",
            ),
            ("insert into t values (2, 'x', 1), (2, 'x', 2)", "23505: duplicate key"),
            ("insert into t values (2, 'x', null)", "23502: null value in column \"c\""),
            ("insert into t values (null, 'x', 1)", "23502: null value in column \"a\""),
            ("insert into t values (2, 'x', 3000000000)", "22003:"),
            ("insert into t values (2, 'x', 'y')", "22P02: invalid input syntax for type integer"),
            (
                "insert into t values (2, 'x', 1, 1)",
                "42601: INSERT has more expressions than target",
            ),
            (
                "insert into t (a, b, c) values (2, 'x')",
                "42601: INSERT has more target columns than",
            ),
            (
                "insert into t (a, d) values (2, 'x')",
                "42703: column \"d\" of relation \"t\" does not",
            ),
            ("insert into t (a, a) values (2, 2)", "42701: column \"a\" specified more than once"),
            (
                "insert into t values (1, 'z'), (2)",
                "42601: VALUES lists must all be the same length",
            ),
            ("insert into u values (1)", "42P01: relation \"u\" does not exist"),
            ("update t set d = 1", "42703: column \"d\" of relation \"t\" does not exist"),
            ("update t set c = 1, c = 2", "42601: multiple assignments to same column \"c\""),
            ("update t set c = null", "23502: null value in column \"c\""),
            ("update t set c = c + 2147483647", "22003:"),
            ("update t set c = c / 0", "22012: division by zero"),
            ("delete from t where d = 1", "42703: column \"d\" does not exist"),
            (
                "insert into t values (2, 'x', 1) on conflict do nothing",
                "0A000: INSERT ... ON CONF",
            ),
            ("insert into t values (2, 'x', 1) returning a", "0A000: INSERT ... RETURNING"),
        ] {
            let output = b.run(sql).await;
            assert!(output.starts_with(&format!("ERROR {expected}")), "{sql}\n{output}");
        }
        assert_eq!(b.ok("select * from t").await, "[a|b|c]\n1|x|1");
    });
}

#[test]
fn changing_a_key_moves_the_row() {
    with_bench(|mut b| async move {
        b.ok(TABLE).await;
        b.ok("insert into t values (1, 'x', 1), (2, 'x', 2), (3, 'x', 3)").await;
        b.ok("update t set a = a + 1").await;
        assert_eq!(b.ok("select a, c from t").await, "[a|c]\n2|1\n3|2\n4|3");
        let output = b.run("update t set a = 9").await;
        assert!(output.starts_with("ERROR 23505"), "{output}");
        let output = b.run("update t set a = 4 where a = 2").await;
        assert!(output.starts_with("ERROR 23505"), "{output}");
    });
}

#[test]
fn a_write_names_the_tables_that_it_was_planned_with() {
    with_bench(|mut b| async move {
        b.ok(TABLE).await;
        b.ok("create table u (a int primary key)").await;
        b.ok("insert into t values (1, 'x', 1), (5, 'x', 1)").await;
        b.tablets.take_writes();
        b.ok("update t set c = 2 where a = 1 and b = 'x'").await;
        b.ok("delete from t where a between 2 and 4").await;
        b.ok("insert into u select a + 10 from t").await;
        let writes = b.tablets.take_writes();
        assert_eq!(writes.len(), 2, "where there is nothing to delete, nothing is written");
        assert_eq!(writes[0].schema, [(100, 1)]);
        assert!(matches!(writes[0].mutations.as_slice(), [Mutation::Put { .. }]));
        assert_eq!(writes[1].schema, [(100, 1), (101, 1)]);
        assert_eq!(writes[1].mutations.len(), 2);
    });
}

#[test]
fn conflicts_are_retried_and_unknown_outcomes_are_not() {
    with_bench(|mut b| async move {
        b.ok(TABLE).await;
        b.ok("insert into t values (1, 'x', 1)").await;
        for _ in 0..3 {
            b.tablets.fail_next_write(TxnError::Conflict);
        }
        assert_eq!(b.ok("update t set c = c + 1").await, "UPDATE 1");
        assert_eq!(b.ok("select c from t").await, "[c]\n2");
        b.tablets.fail_next_write(TxnError::SchemaChanged { table: 100 });
        assert_eq!(b.ok("update t set c = c + 1").await, "UPDATE 1");
        b.tablets.fail_next_write(TxnError::Unknown { reason: "lost".to_owned() });
        let output = b.run("update t set c = c + 1").await;
        assert!(output.starts_with("ERROR 08007"), "{output}");
        for _ in 0..10_000 {
            b.tablets.fail_next_write(TxnError::Conflict);
        }
        let output = b.run("update t set c = c + 1").await;
        assert!(output.starts_with("ERROR 40001"), "{output}");
    });
}

#[test]
fn statements_reach_over_tablets_and_tables() {
    with_bench(|mut b| async move {
        b.ok(TABLE).await;
        b.ok("create table u (a int primary key)").await;
        b.ok("insert into t values (1, 'x', 1), (5, 'x', 1); insert into u values (1)").await;
        let table = b.engine.catalog.snapshot().table("public", "t").expect("there").clone();
        let values = [ScalarValue::Int32(Some(3)), ScalarValue::Utf8(Some(String::new()))];
        let codec = crate::codec::row_codec(&table).expect("a codec");
        b.tablets.split(codec.key_of(&values).expect("encodes"));
        for (sql, tag) in [
            ("insert into t values (2, 'y', 1), (6, 'y', 1)", "INSERT 0 2"),
            ("update t set c = 2", "UPDATE 4"),
            ("update t set a = 7 where a = 1", "UPDATE 1"),
            ("insert into t select a + 10, b, c from t where a < 3", "INSERT 0 1"),
            ("insert into t select a + 10, 'x' from u", "INSERT 0 1"),
            ("delete from t where a in (select a + 4 from u)", "DELETE 1"),
        ] {
            assert_eq!(b.ok(sql).await, tag, "{sql}");
        }
        assert_eq!(
            b.ok("select a, b, c from t").await,
            "[a|b|c]\n2|y|2\n6|y|2\n7|x|2\n11|x|7\n12|y|2"
        );
    });
}

#[test]
fn parameters_get_their_types_from_where_they_stand() {
    with_bench(|mut b| async move {
        b.ok("create table t (a bigint primary key, b text, c uuid, d date)").await;
        let session = &mut b.session;
        for (sql, expected) in [
            ("insert into t values ($1, $2, $3, $4)", "bigint, text, uuid, date"),
            ("insert into t (d, a) values ($2, $1 + 1)", "bigint, date"),
            ("update t set b = $2, d = $3 where a = $1", "bigint, text, date"),
            ("delete from t where c = $1 or d > $2", "uuid, date"),
            ("select * from t where a between $1 and $2 and b like $3", "bigint, bigint, text"),
            ("select * from t where a in ($1, $2) limit $3", "bigint, bigint, bigint"),
            ("select $1, $2::int, cast($3 as date)", "text, integer, date"),
            ("select 1", ""),
        ] {
            let statement = session.parse_one(sql).expect("parses");
            let prepared = session.prepare(&statement, &[]).await.expect(sql);
            let types: Vec<_> = prepared.parameters().iter().map(PgType::to_string).collect();
            assert_eq!(types.join(", "), expected, "{sql}");
        }
        let insert = "insert into t (a, b) values ($1, $2)";
        let values = |a: i64, b: &str| {
            vec![ScalarValue::Int64(Some(a)), ScalarValue::Utf8(Some(b.to_owned()))]
        };
        assert_eq!(run_with(session, insert, &[], values(1, "x")).await, "INSERT 0 1");
        assert_eq!(run_with(session, insert, &[], values(2, "y")).await, "INSERT 0 1");
        let select = "select b from t where a = $1";
        for (a, expected) in [(1, "[b]\nx"), (2, "[b]\ny"), (3, "[b]")] {
            let values = vec![ScalarValue::Int64(Some(a))];
            assert_eq!(run_with(session, select, &[], values).await, expected);
        }
        assert_eq!(run(session, "select count(*) from t").await, "[count]\n2");
    });
}
