//! EXPLAIN, and what scans are pushed down to.

use super::with_bench;

const TABLE: &str = "create table t (a int, b text, c int, primary key (a, b))";

/// The key ranges that a condition is read with.
async fn keys(b: &mut super::Bench, condition: &str) -> Vec<String> {
    let plan = b.ok(&format!("explain select * from t where {condition}")).await;
    plan.lines().filter_map(|line| line.trim().strip_prefix("Keys: ").map(str::to_owned)).collect()
}

#[test]
fn key_ranges_follow_from_filters() {
    with_bench(|mut b| async move {
        b.ok(TABLE).await;
        for (condition, expected) in [
            ("c = 1", vec!["all"]),
            ("a = 1", vec!["a = 1"]),
            ("1 = a and c = 2", vec!["a = 1"]),
            ("a = 1 and b = 'x'", vec!["a = 1 AND b = 'x'"]),
            ("a in (3, 1, 3)", vec!["a = 1", "a = 3"]),
            ("a = 1 or a = 5", vec!["a = 1", "a = 5"]),
            ("a in (1, 5) and b = 'x'", vec!["a = 1 AND b = 'x'", "a = 5 AND b = 'x'"]),
            ("a > 1", vec!["a >= 2"]),
            ("a >= 2 and a < 5", vec!["a >= 2 AND a <= 4"]),
            ("a between 2 and 5", vec!["a >= 2 AND a <= 5"]),
            ("a = 1 and b > 'm'", vec!["a = 1 AND b > 'm'"]),
            ("a = 1 and b >= 'm' and b < 'p'", vec!["a = 1 AND b >= 'm' AND b < 'p'"]),
            ("a = 1 and b between 'm' and 'p'", vec!["a = 1 AND b >= 'm' AND b <= 'p'"]),
            ("b = 'x'", vec!["all"]),
            ("a < 5 and b = 'x'", vec!["a <= 4"]),
            (
                "(a = 1 and b = 'x') or (a = 2 and b > 'y')",
                vec!["a = 1 AND b = 'x'", "a = 2 AND b > 'y'"],
            ),
            ("a = 1 or c = 2", vec!["all"]),
            ("a = 1 + 2", vec!["a = 3"]),
            ("a = 1 and a = 2", vec![]),
            ("a > 5 and a < 3", vec![]),
            ("a is null", vec![]),
            ("a = null", vec![]),
            ("a <> 1", vec!["all"]),
            ("not a = 1", vec!["all"]),
        ] {
            assert_eq!(keys(&mut b, condition).await, expected, "{condition}");
        }
    });
}

#[test]
fn explain_shows_tablets_ranges_filters_and_limit() {
    with_bench(|mut b| async move {
        b.ok(TABLE).await;
        b.ok("insert into t values (1, 'x', 1)").await;
        b.tablets.take_fragments();
        assert_eq!(
            b.ok("explain select c from t where a = 1 and c > 5 order by b limit 3").await,
            "[QUERY PLAN]\n\
             ProjectionExec: expr=[c@1 as c]\n\
             \x20 ->  Tablet Scan on public.t\n\
             \x20       Columns: b, c\n\
             \x20       Tablet t2, led by n1 (us-east)\n\
             \x20         Keys: a = 1\n\
             \x20       Filter: a = 1 AND c > 5\n\
             \x20       Limit: 3"
        );
        let texts = b.ok("explain select c from t where b = 'it''s' and b < upper('x')").await;
        assert!(texts.ends_with("Filter: b = 'it''s' AND b < 'X'"), "{texts}");
        assert_eq!(
            b.ok("explain delete from t where a = 1").await,
            "[QUERY PLAN]\n\
             Delete on public.t\n\
             \x20 ->  Tablet Scan on public.t\n\
             \x20       Columns: a, b\n\
             \x20       Tablet t2, led by n1 (us-east)\n\
             \x20         Keys: a = 1\n\
             \x20       Filter: a = 1"
        );
        assert_eq!(
            b.ok("explain insert into t values (1)").await,
            "[QUERY PLAN]\nInsert on public.t"
        );
        assert!(b.run("explain analyze delete from t").await.starts_with("ERROR 0A000"));
        assert!(b.run("explain create table u (a int)").await.starts_with("ERROR 0A000"));
        assert!(b.tablets.take_fragments().is_empty(), "EXPLAIN executes nothing");
        assert_eq!(b.ok("select count(*) from t").await, "[count]\n1");
        let analyzed = b.ok("explain analyze select * from t").await;
        assert!(analyzed.contains("Actual: rows=1 time="), "{analyzed}");
        let visited = "Visited: tablets=1 regions=us-east round trips=0 lock wait=0.000 ms";
        assert!(analyzed.contains(visited), "{analyzed}");
        assert!(analyzed.contains("Rows: 1"), "{analyzed}");
    });
}

#[test]
fn the_order_of_the_key_needs_no_sort() {
    with_bench(|mut b| async move {
        b.ok(TABLE).await;
        for (order, backward) in [("a", false), ("a, b", false), ("a desc, b desc", true)] {
            let plan = b.ok(&format!("explain select * from t order by {order} limit 5")).await;
            assert!(!plan.contains("Sort"), "{order}\n{plan}");
            assert_eq!(plan.contains("backward"), backward, "{order}\n{plan}");
        }
        let plan = b.ok("explain select * from t order by a, b desc").await;
        assert!(plan.contains("Sort"), "{plan}");
        b.ok("insert into t values (1, 'x', 1), (1, 'y', 2), (2, 'x', 3), (3, 'a', 4)").await;
        b.ok("insert into t values (4, 'x', 1), (5, 'y', 2), (6, 'x', 3), (7, 'a', 4)").await;
        assert_eq!(b.ok("select a from t order by a desc limit 3").await, "[a]\n7\n6\n5");
        assert_eq!(
            b.ok("select a, b from t where a < 3 order by a desc, b desc").await,
            "[a|b]\n2|x\n1|y\n1|x"
        );
    });
}

#[test]
fn limits_are_pushed_below_exact_filters() {
    with_bench(|mut b| async move {
        b.ok(TABLE).await;
        b.ok("insert into t values (1, 'x', 1), (2, 'y', 2), (3, 'x', 3), (4, 'a', 4)").await;
        b.tablets.take_fragments();
        assert_eq!(b.ok("select a from t where c > 1 limit 2").await, "[a]\n2\n3");
        let fragments = b.tablets.take_fragments();
        assert_eq!(fragments.len(), 1);
        assert_eq!((fragments[0].limit, fragments[0].filters.len()), (Some(2), 1));
        assert_eq!(fragments[0].projection, [0]);
    });
}
