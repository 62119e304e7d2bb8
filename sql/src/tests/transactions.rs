//! Transaction blocks: what they see, what becomes of them, and what clients are told.

use super::{Bench, run, with_bench};

/// Runs a script and compares: a statement per line, what comes of it indented below.
async fn plays(b: &mut Bench, script: &str) {
    let mut written = String::new();
    for line in script.lines().filter(|line| !line.is_empty() && !line.starts_with(' ')) {
        let output = b.run(line).await;
        let status = match b.session.transaction_status() {
            crate::TransactionStatus::Idle => "",
            crate::TransactionStatus::InTransaction => "T ",
            crate::TransactionStatus::Failed => "E ",
        };
        written += &format!("{line}\n");
        for line in output.lines() {
            let line = if line.starts_with("ERROR") { &line[..11] } else { line };
            written += &format!("  {status}{line}\n");
        }
    }
    let script: String =
        script.lines().filter(|line| !line.is_empty()).map(|line| format!("{line}\n")).collect();
    assert_eq!(written, script, "\n{written}");
}

#[test]
fn a_transaction_reads_its_own_writes_in_scans_joins_and_aggregates() {
    with_bench(|mut b| async move {
        b.ok("create table t (k int primary key, v text)").await;
        b.ok("create table u (a text, k int, primary key (a, k))").await;
        b.ok("insert into t values (1, 'one'), (2, 'two'), (3, 'three'), (5, 'five')").await;
        b.ok("insert into u values ('x', 1), ('x', 2)").await;
        let script = "
begin
  T BEGIN
insert into t values (4, 'four'), (0, 'zero')
  T INSERT 0 2
update t set v = 'TWO' where k = 2
  T UPDATE 1
delete from t where k = 3
  T DELETE 1
select * from t order by k
  T [k|v]
  T 0|zero
  T 1|one
  T 2|TWO
  T 4|four
  T 5|five
select v from t where k > 1 order by k desc limit 2
  T [v]
  T five
  T four
select v from t where v like 't%' or v = 'TWO'
  T [v]
  T TWO
select count(*), min(k), max(v) from t
  T [count|min|max]
  T 5|0|zero
select u.k, t.v from u join t on u.k = t.k order by 1
  T [k|v]
  T 1|one
  T 2|TWO
update t set k = k + 10 where k in (4, 5)
  T UPDATE 2
insert into t values (4, 'again')
  T INSERT 0 1
insert into u select v, k from t where k > 3
  T INSERT 0 3
commit
  COMMIT
select k, v from t
  [k|v]
  0|zero
  1|one
  2|TWO
  4|again
  14|four
  15|five
select count(*) from u
  [count]
  5
";
        plays(&mut b, script).await;
    });
}

#[test]
fn what_is_rolled_back_was_never_there() {
    with_bench(|mut b| async move {
        b.ok("create table t (k int primary key, v int)").await;
        b.ok("insert into t values (1, 1)").await;
        let script = "
begin
  T BEGIN
insert into t values (2, 2)
  T INSERT 0 1
savepoint a
  T SAVEPOINT
update t set v = 10
  T UPDATE 2
savepoint b
  T SAVEPOINT
delete from t
  T DELETE 2
select count(*) from t
  T [count]
  T 0
rollback to b
  T ROLLBACK
select * from t order by k
  T [k|v]
  T 1|10
  T 2|10
rollback to savepoint a
  T ROLLBACK
select * from t order by k
  T [k|v]
  T 1|1
  T 2|2
rollback to b
  E ERROR 3B001
rollback to a
  T ROLLBACK
release a
  T RELEASE
commit
  COMMIT
start transaction
  T START TRANSACTION
delete from t
  T DELETE 2
abort
  ROLLBACK
select * from t order by k
  [k|v]
  1|1
  2|2
";
        plays(&mut b, script).await;
    });
}

#[test]
fn an_error_fails_the_block_and_undoes_its_statement() {
    with_bench(|mut b| async move {
        b.ok("create table t (k int primary key)").await;
        b.ok("insert into t values (1)").await;
        for (sql, code) in [
            ("insert into t values (7), (1)", "23505"),
            ("insert into t values (8), (8)", "23505"),
            ("select 1 / (k - 1) from t", "22012"),
            ("select nonsense from t", "42703"),
            ("selec", "42601"),
        ] {
            b.ok("begin; insert into t values (2)").await;
            let output = b.run(sql).await;
            assert!(output.contains(code), "{sql}: {output}");
            if code == "42601" {
                // Whoever parses tells the session; here that is nobody.
                b.session.fail(&b.session.parse(sql).unwrap_err());
            }
            for refused in ["select 1", "begin", "savepoint a", "release a", "set timezone = 'utc'"]
            {
                let output = b.run(refused).await;
                assert!(output.contains("25P02"), "{refused}: {output}");
            }
            assert_eq!(b.run("commit").await, "ROLLBACK");
        }
        let script = "
begin
  T BEGIN
insert into t values (2)
  T INSERT 0 1
savepoint s
  T SAVEPOINT
insert into t values (3), (1)
  E ERROR 23505
rollback to s
  T ROLLBACK
insert into t values (4)
  T INSERT 0 1
end
  COMMIT
select * from t order by k
  [k]
  1
  2
  4
";
        plays(&mut b, script).await;
    });
}

#[test]
fn statements_of_one_message_are_one_transaction() {
    with_bench(|mut b| async move {
        b.ok("create table t (k int primary key)").await;
        let output = b.run("insert into t values (1); insert into t values (1)").await;
        assert!(output.contains("23505"), "{output}");
        assert_eq!(b.ok("select count(*) from t").await, "[count]\n0");
        let output = b.ok("insert into t values (1); insert into t select k + 1 from t").await;
        assert_eq!(output, "INSERT 0 1\nINSERT 0 1");
        // Those before BEGIN belong to the block, and COMMIT ends it.
        b.ok("insert into t values (3); begin; insert into t values (4)").await;
        assert_eq!(b.run("rollback").await, "ROLLBACK");
        let output = b.run("begin; insert into t values (5); commit; selec 1").await;
        assert!(output.contains("42601"), "{output}: the whole text is parsed first");
        let output =
            b.run("begin; insert into t values (5); commit; insert into t values (6), (1)").await;
        assert!(output.contains("23505"), "{output}");
        let output = b.run("insert into t values (7); rollback; insert into t values (8)").await;
        assert!(output.contains("WARNING 25P01: there is no transaction in progress"), "{output}");
        assert_eq!(b.ok("select * from t order by k").await, "[k]\n1\n2\n5\n8");
        let output = b.run("insert into t values (9); savepoint a").await;
        assert!(output.contains("25P01"), "{output}");
        assert_eq!(b.ok("select count(*) from t").await, "[count]\n4");
    });
}

#[test]
fn clients_are_told_what_postgresql_tells_them() {
    with_bench(|mut b| async move {
        b.ok("create table t (k int primary key)").await;
        for (sql, answer) in [
            ("commit", "COMMIT\nWARNING 25P01: there is no transaction in progress"),
            ("rollback", "ROLLBACK\nWARNING 25P01: there is no transaction in progress"),
            ("begin work", "BEGIN"),
            ("begin", "BEGIN\nWARNING 25001: there is already a transaction in progress"),
            ("show transaction_isolation", "[transaction_isolation]\nserializable"),
            ("commit and chain", "COMMIT"),
            ("set transaction read only, isolation level read committed", "SET"),
            ("show transaction_read_only", "[transaction_read_only]\non"),
            ("rollback and no chain", "ROLLBACK"),
            ("show transaction_read_only", "[transaction_read_only]\noff"),
            (
                "set transaction isolation level serializable",
                "SET\nWARNING 25P01: SET TRANSACTION can only be used in transaction blocks",
            ),
            (
                "set local timezone = 'utc'",
                "SET\nWARNING 25P01: SET LOCAL can only be used in transaction blocks",
            ),
            (
                "start transaction isolation level repeatable read, read write, not deferrable",
                "START TRANSACTION",
            ),
            ("end transaction", "COMMIT"),
        ] {
            assert_eq!(b.run(sql).await, answer, "{sql}");
        }
        for (sql, code) in [
            ("savepoint a", "25P01"),
            ("release a", "25P01"),
            ("rollback to a", "25P01"),
            ("commit and chain", "25P01"),
            ("begin; rollback to nowhere", "3B001"),
            ("begin read only; insert into t values (1)", "25006"),
            ("begin read only; select * from t for update", "25006"),
            ("begin read only; create table x (k int primary key)", "25006"),
            ("begin; select 1; set transaction isolation level read committed", "25001"),
            ("begin read only; select 1; set transaction read write", "25001"),
            ("begin; create table x (k int primary key)", "25001"),
            ("begin; discard all", "25001"),
            ("begin nonsense", "42601"),
            ("select k from t union select k from t for update", "0A000"),
            ("select distinct k from t for share", "0A000"),
            ("select * from t for update of x", "42P01"),
        ] {
            let output = b.run(sql).await;
            assert!(output.contains(code), "{sql}: {output}");
            b.run("rollback").await;
        }
        b.ok("set session characteristics as transaction read only").await;
        assert!(b.run("insert into t values (1)").await.contains("25006"));
        b.ok("begin read write; insert into t values (1); commit").await;
    });
}

#[test]
fn settings_go_back_with_their_transaction() {
    with_bench(|mut b| async move {
        let zone = "show timezone";
        b.ok("begin; set timezone = 'Europe/Berlin'; commit").await;
        b.ok("begin; set timezone = 'Asia/Tokyo'; rollback").await;
        assert_eq!(b.ok(zone).await, "[TimeZone]\nEurope/Berlin");
        b.ok("begin; set local timezone = 'Asia/Tokyo'").await;
        assert_eq!(b.ok(zone).await, "[TimeZone]\nAsia/Tokyo");
        b.ok("savepoint a; set local timezone = 'utc'; rollback to a").await;
        assert_eq!(b.ok(zone).await, "[TimeZone]\nAsia/Tokyo");
        b.session.take_parameter_changes();
        b.ok("commit").await;
        assert_eq!(b.ok(zone).await, "[TimeZone]\nEurope/Berlin");
        let told = b.session.take_parameter_changes();
        assert_eq!(told, [("TimeZone".to_owned(), "Europe/Berlin".to_owned())]);
    });
}

#[test]
fn a_block_over_several_tablets_is_one_write() {
    with_bench(|mut b| async move {
        b.ok("create table t (k int primary key, v int)").await;
        let table = b.engine.catalog.snapshot().table("public", "t").expect("there").clone();
        let codec = crate::codec::row_codec(&table).expect("a codec");
        let key = |k: i32| codec.key_of(&[crate::ScalarValue::Int32(Some(k))]).expect("a key");
        b.tablets.split(key(10));
        b.tablets.split(key(20));
        b.ok("insert into t values (1, 1), (11, 1), (21, 1)").await;
        b.ok("update t set v = v + 1").await;
        b.ok("begin; update t set k = k + 5 where k > 5; delete from t where k = 1; commit").await;
        assert_eq!(b.ok("select * from t").await, "[k|v]\n16|2\n26|2");
        let mut other = b.other_gateway();
        assert_eq!(run(&mut other, "select sum(v) from t").await, "[sum]\n4");
    });
}
