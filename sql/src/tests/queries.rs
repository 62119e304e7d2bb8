//! SELECT.

use meridian_txn::ReadAt;

use super::with_bench;
use crate::fragment::Access;

#[test]
fn queries_answer() {
    with_bench(|mut b| async move {
        b.ok("create table t (a int primary key, b text, c numeric(10,2))").await;
        b.ok("insert into t values (1, 'x', 1.5), (2, 'y', null), (3, 'x', 2.25)").await;
        for (sql, expected) in [
            ("select 1, 2, 'x', null", "[?column?|?column?|?column?|?column?]\n1|2|x|null"),
            ("select 1 + 1, -1, 2147483648", "[?column?|?column?|?column?]\n2|-1|2147483648"),
            ("select count(*), sum(c) from t", "[count|sum]\n3|3.75"),
            ("select b, count(*) as n from t group by b order by n desc", "[b|n]\nx|2\ny|1"),
            ("select a from t where b = 'x' order by a desc", "[a]\n3\n1"),
            ("select a from t where a = '2'", "[a]\n2"),
            ("select a from t where a in ('1', '3') order by 1", "[a]\n1\n3"),
            ("select a from t where a between '2' and '3'", "[a]\n2\n3"),
            ("select x.a, y.a from t x join t y on x.a = y.a + 1 order by 1", "[a|a]\n2|1\n3|2"),
            ("select a, a from t where a = 1", "[a|a]\n1|1"),
            ("with q as (select a from t) select max(a) from q", "[max]\n3"),
            ("select a from t where a = (select max(a) from t)", "[a]\n3"),
            (
                "select a, row_number() over (order by a desc) from t order by 1",
                "[a|row_number]\n1|3\n2|2\n3|1",
            ),
            ("select a from t union all select a from t order by 1 limit 2", "[a]\n1\n1"),
            ("select a from t where c is null", "[a]\n2"),
            ("select case when a = 1 then 'one' else b end from t where a < 3", "[b]\none\ny"),
            ("values (1, 'a'), (2, 'b')", "[column1|column2]\n1|a\n2|b"),
            ("select 9223372036854775807::bigint", "[int8]\n9223372036854775807"),
            ("select '2020-01-02'::date", "[date]\n2020-01-02"),
            ("select g from generate_series(1, 3) g", "[g]\n1\n2\n3"),
            ("select 'abc' like 'a%'", "[?column?]\nt"),
        ] {
            assert_eq!(b.run(sql).await, expected, "{sql}");
        }
    });
}

#[test]
fn errors_have_postgresqls_codes() {
    with_bench(|mut b| async move {
        b.ok("create table t (a int primary key, b text)").await;
        b.ok("insert into t values (1, 'x')").await;
        for (sql, expected) in [
            ("select * from nope", "42P01: relation \"nope\" does not exist"),
            ("select * from s.nope", "42P01: relation \"s.nope\" does not exist"),
            ("select nope from t", "42703: column \"nope\" does not exist"),
            ("select t.nope from t", "42703: column t.nope does not exist"),
            ("select nope(a) from t", "42883: function nope"),
            ("select a from t x, t y", "42702: column reference \"a\" is ambiguous"),
            ("select a from t, t", "42712: table name \"t\" specified more than once"),
            ("select a, count(*) from t", "42803:"),
            ("select 1 / 0", "22012: division by zero"),
            ("select a / 0 from t", "22012: division by zero"),
            ("select 2147483647 + 1", "22003: integer out of range"),
            ("select a + 2147483647 from t", "22003:"),
            ("select 9223372036854775807 + 1", "22003: bigint out of range"),
            ("select a from t where a = 'x'", "22P02: invalid input syntax"),
            ("select * from (select * from t for update) x", "0A000: FOR UPDATE is not supported"),
            ("select (select a from t union all select 2)", "21000: more than one row returned"),
            ("vacuum", "0A000: VACUUM is not supported"),
            ("selec 1", "42601: syntax error at or near \"selec\""),
        ] {
            let output = b.run(sql).await;
            assert!(
                output.contains(&format!("ERROR {expected}")),
                "{sql}\n{output}\nexpected {expected}"
            );
        }
    });
}

#[test]
fn one_tablet_is_read_as_its_leader_likes_and_several_at_one_timestamp() {
    with_bench(|mut b| async move {
        b.ok("create table t (a int primary key); create table u (a int primary key)").await;
        b.ok("insert into t values (1), (2); insert into u values (1)").await;
        b.tablets.take_fragments();
        let seen = b.session.high_water().get();
        b.ok("select * from t where a = 1").await;
        assert_eq!(b.tablets.take_fragments()[0].access, Access::At(ReadAt::Strong { min: seen }));
        b.ok("select * from t join u using (a)").await;
        let fragments = b.tablets.take_fragments();
        assert_eq!(fragments.len(), 2);
        assert!(matches!(fragments[0].access, Access::At(ReadAt::Exact(_))));
        assert_eq!(fragments[0].access, fragments[1].access);
        b.ok("update t set a = a where a = 1").await;
        assert_eq!(b.tablets.take_fragments()[0].access, Access::At(ReadAt::Unconfirmed));
    });
}

/// Runs a test on a thread with the stack that the server's have.
fn with_stack(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(crate::STACK).spawn(test);
    thread.expect("a thread").join().expect("the test passes");
}

#[test]
fn the_deepest_statements_neither_crash_nor_take_for_ever() {
    with_stack(|| {
        with_bench(|mut b| async move {
            b.ok("create table t (a int primary key, b text); insert into t values (1, 'x')").await;
            let (n, m) = (299, 30);
            let joins: String = (1..20).map(|i| format!(" join t t{i} on t0.a = t{i}.a")).collect();
            for sql in [
                format!("select {}a from t", "a - ".repeat(n)),
                format!("select {}b from t", "b || ".repeat(n)),
                format!("select a{} from t", "::int".repeat(n)),
                format!("select a from t where {}a = 1", "a = 1 or b like 'x' or ".repeat(n / 2)),
                format!("delete from t where {}a = 2", "a = 2 or b like 'y' or ".repeat(n / 2)),
                format!("update t set b = {}'x'", "'x' || ".repeat(n)),
                format!("insert into t values (2, {}'x')", "'x' || ".repeat(n - 1)),
                format!("select 1{}", " union all select 1".repeat(n)),
                format!("select 1{}", " union select 1".repeat(n)),
                format!("select {}a{} from t", "(".repeat(m), ")".repeat(m)),
                format!("select {}a{} from t", "abs(".repeat(m), ")".repeat(m)),
                format!("select {}a from t", "- ".repeat(m)),
                format!("select a from t where {}a = 1", "not ".repeat(m)),
                format!("select {}1{}", "case when true then ".repeat(m), " end".repeat(m)),
                format!("select a from {}t{}", "(select a from ".repeat(12), ") x".repeat(12)),
                format!("select 1 from t t0{joins}"),
            ] {
                let output = b.run(&sql).await;
                assert!(!output.contains("ERROR"), "{}...\n{output}", &sql[..60]);
            }
        });
    });
}

#[test]
fn deeper_statements_are_refused() {
    with_bench(|mut b| async move {
        b.ok("create table t (a int primary key, b text)").await;
        for sql in [
            format!("select {}a from t", "a + ".repeat(5_000)),
            format!("insert into t values ({}1, 'x')", "1 + ".repeat(5_000)),
            format!("update t set b = {}'x'", "b || ".repeat(5_000)),
            format!("{}select 1", "explain ".repeat(5_000)),
            format!("create table u (a int primary key default {}1)", "1 + ".repeat(5_000)),
        ] {
            let output = b.run(&sql).await;
            assert!(output.starts_with("ERROR 54001"), "{}...\n{output}", &sql[..60]);
        }
    });
}
