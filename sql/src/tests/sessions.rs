//! Settings, functions of the cluster, timeouts.

use std::sync::atomic::Ordering;

use futures::StreamExt;

use super::{run, run_with, with_bench};
use crate::ScalarValue;
use crate::session::{Outcome, Series};

#[test]
fn settings_are_set_shown_and_reset() {
    with_bench(|mut b| async move {
        let output = b
            .each(
                "set application_name to 'x'; show application_name; reset application_name;
                 show application_name; show transaction isolation level; set time zone 'Europe/Rome';
                 show timezone; set search_path to public, other; show search_path;
                 set session characteristics as transaction isolation level read committed;
                 set nonsense = 1; show nonsense; discard all; show time zone; deallocate all",
            )
            .await;
        assert_eq!(
            output,
            "SET\n[application_name]\nx\nRESET\n[application_name]\n\n[transaction_isolation]\n\
             serializable\nSET\n[TimeZone]\nEurope/Rome\nSET\n[search_path]\npublic, other\nSET\n\
             ERROR 42704: unrecognized configuration parameter \"nonsense\"\n\
             ERROR 42704: unrecognized configuration parameter \"nonsense\"\n\
             DISCARD ALL\n[TimeZone]\nUTC\nDEALLOCATE ALL"
        );
        let changes = b.session.take_parameter_changes();
        assert_eq!(changes[0], ("application_name".to_owned(), "x".to_owned()));
        assert!(b.run("select version()").await.starts_with("[version]\nPostgreSQL 15"));
    });
}

#[test]
fn the_clusters_functions_run_when_executed_only() {
    with_bench(|mut b| async move {
        let statement = b.session.parse_one("select meridian.stop_node(3)").expect("parses");
        let prepared = b.session.prepare(&statement, &[]).await.expect("prepares");
        assert!(b.cluster.calls.lock().expect("no panics").is_empty());
        b.session.execute(&prepared, vec![], Series::Alone).await.expect("runs");
        assert_eq!(b.ok("select meridian.start_node(3)").await, "[start_node]\nt");
        assert_eq!(*b.cluster.calls.lock().expect("no panics"), ["stop n3", "start n3"]);
        assert_eq!(
            b.ok("select node, region, state from meridian.nodes").await,
            "[node|region|state]\n1|us-east|running"
        );
        b.ok("create table t (a int primary key)").await;
        assert_eq!(
            b.ok("select tablet, table_name, range_start, replicas, leader from meridian.tablets")
                .await,
            "[tablet|table_name|range_start|replicas|leader]\n2|public.t|t|{1,2}|1"
        );
        let measured = "select size_bytes, requests_per_second from meridian.tablets";
        assert_eq!(b.ok(measured).await, "[size_bytes|requests_per_second]\n17|0.5");
        let placed = "select leader_region, voters, read_only, preferred_leader, placement \
                      from meridian.tablets";
        assert_eq!(
            b.ok(placed).await.lines().nth(1),
            Some(
                "us-east|{1}|{2}|1|{\"voters\": 1, \"regions\": [], \"read_only\": [], \
                 \"leader_region\": \"us-east\"}"
            )
        );
    });
}

#[test]
fn a_statement_ends_at_its_timeout() {
    with_bench(|mut b| async move {
        b.ok("create table t (a int primary key)").await;
        b.ok("set statement_timeout = '50ms'").await;
        for _ in 0..10_000 {
            b.tablets.fail_next_write(meridian_txn::TxnError::Conflict);
        }
        let output = b.run("insert into t values (1)").await;
        assert!(output.starts_with("ERROR 57014"), "{output}");
    });
}

#[test]
fn plans_are_kept_but_not_their_clock() {
    with_bench(|mut b| async move {
        b.ok("create table t (a int primary key, at timestamptz default now())").await;
        let first = b.ok("select now()").await;
        let second = b.ok("select now()").await;
        assert_ne!(first, second);
        b.ok("insert into t (a) values (1), (2)").await;
        assert_eq!(b.ok("select count(distinct at) from t").await, "[count]\n1");
        let session = &mut b.session;
        let sql = "select a from t where a >= $1 order by a";
        for (from, expected) in [(1, "[a]\n1\n2"), (2, "[a]\n2"), (3, "[a]")] {
            let values = vec![ScalarValue::Int32(Some(from))];
            assert_eq!(run_with(session, sql, &[], values).await, expected);
        }
        assert_eq!(run(session, "select current_date = now()::date").await, "[?column?]\nt");
    });
}

#[test]
fn dropping_the_rows_stops_the_reading() {
    with_bench(|mut b| async move {
        b.ok("create table t (a int primary key)").await;
        b.ok("insert into t select generate_series from generate_series(1, 10000)").await;
        let statement = b.session.parse_one("select * from t").expect("parses");
        let prepared = b.session.prepare(&statement, &[]).await.expect("prepares");
        let before = b.tablets.reads.load(Ordering::Relaxed);
        let outcome = b.session.execute(&prepared, vec![], Series::Alone).await.expect("runs");
        let Outcome::Rows { mut batches, .. } = outcome else {
            panic!("not rows");
        };
        assert!(batches.next().await.is_some());
        drop(batches);
        let read = b.tablets.reads.load(Ordering::Relaxed) - before;
        assert!(read < 5_000, "{read} rows were read");
    });
}
