use std::sync::Arc;

use meridian_storage::{KeyBuilder, KeyRange, KeyValue, Order};
use meridian_txn::table_range;

use super::arguments::Given;
use super::keys::RootKey;
use crate::ScalarValue;
use crate::catalog::{CatalogSnapshot, TableInfo};
use crate::error::SqlState;
use crate::meridian_schema::functions::Function;
use crate::tests::{Bench, run_with, with_bench};
use crate::types::{PgType as P, SessionFormat};

/// What the cluster and the tablets were told since the last time.
fn told(bench: &Bench) -> Vec<String> {
    let mut told = std::mem::take(&mut *bench.cluster.calls.lock().expect("no panics"));
    told.extend(bench.tablets.take_calls());
    told.retain(|call| !call.starts_with("fence"));
    told
}

#[test]
fn arguments_come_in_order_or_by_name() {
    with_bench(|mut b| async move {
        for (call, expected) in [
            ("stop_node(3)", "stop n3"),
            ("stop_node(node => 3)", "stop n3"),
            ("stop_node(node := '3')", "stop n3"),
            ("stop_node(\"node\" => 3::smallint)", "stop n3"),
            ("pause_node(2)", "pause n2 None"),
            ("pause_node(2, '5s')", "pause n2 Some(5s)"),
            ("pause_node(2, NULL)", "pause n2 None"),
            ("pause_node(pause => '1.5 s', node => 2)", "pause n2 Some(1.5s)"),
            ("pause_node(2, pause => interval '80 ms')", "pause n2 Some(80ms)"),
            ("pause_node(2, pause => '00:01'::interval)", "pause n2 Some(60s)"),
            ("pause_node(2, pause => cast('1 day' as text))", "pause n2 Some(86400s)"),
            ("partition('us-east', 2)", "partition Region(\"us-east\") Node(n2) true"),
            (
                "partition(b => '2', a => 'us-east'::text, both => false)",
                "partition Region(\"us-east\") Node(n2) false",
            ),
            ("heal()", "heal None"),
            ("heal(1, 2)", "heal Some([Node(n1), Node(n2)])"),
            (
                "set_latency(1, 2, rtt => '80ms', loss => 0.01)",
                "latency Node(n1) Node(n2) LinkChange { rtt: Some(80ms), \
                 jitter: None, loss: Some(0.01) }",
            ),
            (
                "set_latency(1, 2, jitter => '250 us', loss => 1)",
                "latency Node(n1) Node(n2) LinkChange { rtt: None, \
                 jitter: Some(250µs), loss: Some(1.0) }",
            ),
            (
                "set_clock(2, offset => '-3ms', drift_ppm => -50.5)",
                "clock n2 ClockChange { epsilon: None, offset_nanos: Some(-3000000), \
                 drift_ppm: Some(-50.5) }",
            ),
            ("merge(7)", "merge t7"),
            ("transfer_leader(7, node => 2)", "transfer t7 to n2"),
            ("move_replica(7, 1, 3)", "move t7 from n1 to n3"),
            ("move_replica(to_node => 3, from_node => 1, tablet => 7)", "move t7 from n1 to n3"),
        ] {
            let sql = format!("select meridian.{call}");
            let output = b.run(&sql).await;
            assert!(!output.contains("ERROR"), "{sql}: {output}");
            assert_eq!(told(&b), [expected], "{sql}");
        }
    });
}

#[test]
fn calls_that_fit_nothing_are_refused_before_they_do_anything() {
    with_bench(|mut b| async move {
        for (call, code, part) in [
            ("stop_node()", "42883", "function meridian.stop_node() does not exist"),
            ("stop_node()", "42883", "The parameter \"node\" is missing."),
            ("stop_node()", "42883", "There is meridian.stop_node(node bigint)."),
            ("stop_node(1, 2)", "42883", "meridian.stop_node(integer, integer) does not"),
            ("stop_node(1, 2)", "42883", "It takes at most 1 arguments."),
            ("stop_node(nod => 3)", "42883", "meridian.stop_node(nod => integer) does not"),
            ("stop_node(nod => 3)", "42883", "It has no parameter \"nod\"."),
            ("stop_node(3, node => 3)", "42883", "The parameter \"node\" is given twice."),
            ("stop_node(node => 3, node => 3)", "42601", "argument name \"node\" used more than"),
            ("pause_node(pause => '1s', 3)", "42601", "positional argument cannot follow named"),
            ("stop_node(*)", "42601", "syntax error"),
            ("stop_node(null)", "22004", "\"node\" of meridian.stop_node must not be null"),
            ("stop_node('three')", "22P02", "invalid input syntax for type bigint: \"three\""),
            ("stop_node(1.5)", "42883", "\"node\" is of type bigint, not numeric"),
            ("stop_node('1'::text)", "42883", "\"node\" is of type bigint, not text"),
            ("stop_node(true)", "42883", "\"node\" is of type bigint, not boolean"),
            ("stop_node(-1)", "22023", "there is no node -1"),
            ("stop_node(99999999999999999999)", "42883", "not numeric"),
            ("stop_node('99999999999999999999')", "22003", "out of range for type bigint"),
            ("stop_node(1 + 1)", "0A000", "an argument of a function of meridian"),
            ("stop_node((select 1))", "0A000", "Give a constant, a cast of one, or a parameter."),
            ("stop_node(three)", "42703", "column \"three\" does not exist"),
            ("pause_node(2, 'a while')", "22007", "interval"),
            ("pause_node(2, 5)", "42883", "\"pause\" is of type interval, not integer"),
            ("pause_node(2, '-1s')", "22023", "pause must be between 0"),
            ("pause_node(2, '1 month')", "22023", "pause must be given without months"),
            ("pause_node(2, '2 days')", "22023", "pause must be between 0"),
            ("partition('us-east')", "42883", "The parameter \"b\" is missing."),
            ("partition('us-east', null)", "22004", "must not be null"),
            ("partition(1, 2, both => 'perhaps')", "22P02", "boolean"),
            ("heal(1)", "42883", "There is meridian.heal() and meridian.heal(a text, b text)."),
            ("set_latency(1, 2)", "22023", "is told to change nothing"),
            ("set_latency(1, 2, rtt => '61s')", "22023", "rtt must be between 0 and 60s"),
            ("set_latency(1, 2, loss => 1.1)", "22023", "loss must be between 0 and 1"),
            ("set_latency(1, 2, loss => 'NaN')", "22023", "loss must be between 0 and 1"),
            ("set_clock(1)", "22023", "is told to change nothing"),
            ("set_clock(1, offset => '2 minutes')", "22023", "offset must be at most a minute"),
            ("set_clock(1, epsilon => '-1ms')", "22023", "epsilon must be between 0"),
            ("set_clock(1, drift_ppm => 1e9)", "22023", "drift_ppm must be between"),
            ("resume_node(1)", "0A000", "meridian.resume_node is for simulated clusters"),
            ("reset_latency()", "0A000", "tc with netem"),
            ("merge(tablet => null)", "22004", "must not be null"),
        ] {
            let sql = format!("select meridian.{call}");
            let output = b.run(&sql).await;
            assert!(output.starts_with(&format!("ERROR {code}: ")), "{sql}: {output}");
            assert!(output.contains(part), "{sql}: {output}");
            assert!(told(&b).is_empty(), "{sql}");
        }
    });
}

#[test]
fn a_call_stands_alone_and_explain_leaves_it_at_that() {
    with_bench(|mut b| async move {
        for sql in [
            "select meridian.stop_node(1) from meridian.nodes",
            "select meridian.stop_node(1), 2",
            "select meridian.stop_node(1) where true",
            "select 1 + meridian.stop_node(1)",
            "select * from meridian.nodes where meridian.stop_node(node)",
            "with x as (select meridian.stop_node(1)) select * from x",
            "select meridian.stop_node(distinct 1)",
            "select meridian.stop_node(1) limit 0",
            "explain analyze select meridian.stop_node(1)",
        ] {
            let output = b.run(sql).await;
            assert!(output.starts_with("ERROR 0A000"), "{sql}: {output}");
        }
        let output = b.run("select meridian.stop(1)").await;
        assert!(output.starts_with("ERROR 42883"), "{output}");
        let output = b.ok("explain select meridian.stop_node(node => 1) as x").await;
        assert_eq!(output, "[QUERY PLAN]\nCall of meridian.stop_node(node => 1)");
        let output = b.run("explain select meridian.stop_node('x')").await;
        assert!(output.starts_with("ERROR 22P02"), "{output}");
        assert!(told(&b).is_empty());
        assert_eq!(b.ok("SELECT \"meridian\".Stop_Node(1) AS Gone").await, "[gone]\nt");
        assert_eq!(told(&b), ["stop n1"]);
    });
}

#[test]
fn what_was_changed_is_answered_and_what_is_to_be_said_is_said() {
    with_bench(|mut b| async move {
        assert_eq!(b.ok("select meridian.heal()").await, "[heal]\nf");
        assert_eq!(
            b.ok("select meridian.set_latency(1, 2, rtt => '1s')").await,
            "[set_latency]\nt\nNOTICE 00000: far"
        );
        assert_eq!(
            b.ok("select meridian.set_clock(1, offset => '1s')").await,
            "[set_clock]\nt\nWARNING 01000: wrong"
        );
        assert_eq!(b.ok("select meridian.merge(12)").await, "[merge]\n12");
    });
}

#[test]
fn parameters_have_the_types_of_their_places() {
    with_bench(|mut b| async move {
        b.ok("create table t (a int, b text, c uuid, primary key (a, b, c))").await;
        let id = b.ok("select max(table_id) from meridian.catalog_tables").await;
        let id = id.lines().last().expect("a row").parse().expect("a number");
        for (call, expected) in [
            ("stop_node($1)", vec![P::Int8]),
            ("stop_node(node => $1::int)", vec![P::Int4]),
            ("partition($1, $2, both => $3)", vec![P::Text, P::Text, P::Bool]),
            ("pause_node($2, pause => $1)", vec![P::Interval, P::Int8]),
            ("set_latency(1, 2, $1, $2, loss => $3)", vec![P::Interval, P::Interval, P::Float8]),
            ("split('t', $1, $2, $3)", vec![P::Int4, P::Text, P::Uuid]),
            ("split($1, $2)", vec![P::Text, P::Unknown]),
            (
                "place('t', voters => $1, regions => array[$2], from_key => row($3, $4))",
                vec![P::Int4, P::Text, P::Int4, P::Text],
            ),
            ("place('public.t', to_key => $1)", vec![P::Int4]),
        ] {
            let sql = format!("select meridian.{call}");
            let statement = b.session.parse_one(&sql).expect("parses");
            let prepared = b.session.prepare(&statement, &[]).await.expect("prepares");
            assert_eq!(prepared.parameters(), expected, "{sql}");
            assert_eq!(prepared.columns().expect("it is a query").len(), 1, "{sql}");
        }
        assert!(told(&b).is_empty());

        let session = &mut b.session;
        let int = |value| ScalarValue::Int32(Some(value));
        let text = |value: &str| ScalarValue::Utf8(Some(value.to_owned()));
        let output =
            run_with(session, "select meridian.stop_node($1)", &[Some(P::Int4)], vec![int(3)])
                .await;
        assert_eq!(output, "[stop_node]\nt");
        let null = vec![ScalarValue::Int64(None)];
        let output = run_with(session, "select meridian.stop_node($1)", &[], null).await;
        assert!(output.starts_with("ERROR 22004"), "{output}");
        let sql = "select meridian.partition($1, $2)";
        let output = run_with(session, sql, &[], vec![text("us-east"), text("2")]).await;
        assert_eq!(output, "[partition]\nt");
        let sql = "select meridian.split($1, $2)";
        let output = run_with(session, sql, &[], vec![text("t"), text("17")]).await;
        assert_eq!(output, "[split]\n7");
        assert_eq!(
            told(&b),
            [
                "stop n3".to_owned(),
                "partition Region(\"us-east\") Node(n2) true".to_owned(),
                format!("split {:02x?}", key(id, &[KeyValue::Int(17)])),
            ]
        );
    });
}

fn key(table: u64, values: &[KeyValue]) -> Vec<u8> {
    let key = KeyBuilder::new().table(table);
    values.iter().fold(key, |key, value| key.value(value, Order::Asc)).finish()
}

/// The tables' ids follow each other from the first that a user creates.
async fn tables(b: &mut Bench) -> [u64; 2] {
    b.ok("create table t (a int, b varchar(3), primary key (a, b))").await;
    b.ok("create table \"Odd Name\" (k numeric(6,2) primary key)").await;
    let ids = b.ok("select table_id from meridian.catalog_tables order by 1").await;
    let ids: Vec<u64> = ids.lines().skip(1).map(|id| id.parse().expect("a number")).collect();
    [ids[0], ids[1]]
}

#[test]
fn a_split_is_at_a_key_of_the_root_table() {
    with_bench(|mut b| async move {
        let [t, odd] = tables(&mut b).await;
        let text = |text: &str| KeyValue::Text(text.to_owned());
        for (call, table, values) in [
            ("split('t', 5)", t, vec![KeyValue::Int(5)]),
            ("split('public.t', '5')", t, vec![KeyValue::Int(5)]),
            ("split('T', -5, 'x')", t, vec![KeyValue::Int(-5), text("x")]),
            ("split(table_name => 't'::regclass, 5.4)", 0, vec![]),
            ("split('\"t\"'::regclass, 5.4, 'xyz ')", t, vec![KeyValue::Int(5), text("xyz")]),
            (
                "split('meridian.public.\"t\"', 5::bigint, 'x'::text)",
                t,
                vec![KeyValue::Int(5), text("x")],
            ),
        ] {
            let output = b.run(&format!("select meridian.{call}")).await;
            if table == 0 {
                assert!(output.starts_with("ERROR 42601"), "{call}: {output}");
                continue;
            }
            assert_eq!(output, "[split]\n7", "{call}");
            let expected = format!("split {:02x?}", key(table, &values));
            assert_eq!(told(&b), [expected], "{call}");
        }
        assert_eq!(b.ok("select meridian.split('\"Odd Name\"', 1.005)").await, "[split]\n7");
        let [call] = told(&b).try_into().expect("one call");
        assert!(call.starts_with("split ["), "{call}");
        let prefix = format!("{:02x?}", table_range(odd).start);
        assert!(call.contains(prefix.trim_matches(['[', ']'])), "{call} {prefix}");

        for (call, code, part) in [
            ("split('t')", "42883", "The parameter \"key\" is missing."),
            ("split('t', key => 1)", "42883", "It has no parameter \"key\"."),
            ("split('t', 1, 'x', 2)", "22023", "3 values for a key of 2 columns"),
            ("split('t', 1, null)", "22004", "\"key\" of meridian.split must not be null"),
            ("split('t', 'x')", "22P02", "integer"),
            ("split('t', 3000000000)", "22003", "integer out of range"),
            ("split('t', true)", "42804", "column \"a\" is of type integer"),
            ("split('t', 1, 'long')", "22001", "too long"),
            ("split('t', row(1, 'x'))", "42804", "record"),
            ("split('nothing', 1)", "42P01", "relation \"nothing\" does not exist"),
            ("split('public.nothing', 1)", "42P01", "\"public.nothing\""),
            ("split('a.b.c.d', 1)", "42602", "invalid name syntax"),
            ("split('\"t', 1)", "42602", "invalid name syntax"),
            ("split(t, 1)", "42703", "column \"t\" does not exist"),
            ("split('Odd Name', 1)", "42P01", "does not exist"),
            ("split('meridian.nodes', 1)", "42809", "\"nodes\" is not a table"),
            ("split('meridian.catalog_tables', 1)", "42501", "permission denied"),
            ("split(null, 1)", "22004", "\"table_name\""),
        ] {
            let output = b.run(&format!("select meridian.{call}")).await;
            assert!(output.starts_with(&format!("ERROR {code}: ")), "{call}: {output}");
            assert!(output.contains(part), "{call}: {output}");
            assert!(told(&b).is_empty(), "{call}");
        }
        b.ok("set search_path to nowhere").await;
        let output = b.run("select meridian.split('t', 1)").await;
        assert!(output.starts_with("ERROR 42P01"), "{output}");
    });
}

#[test]
fn a_placement_is_for_a_range_of_keys() {
    with_bench(|mut b| async move {
        let [t, _] = tables(&mut b).await;
        let KeyRange { start, end } = table_range(t);
        let end = end.expect("a table's range has an end");
        let at = |values: &[KeyValue]| key(t, values);
        let five_x = [KeyValue::Int(5), KeyValue::Text("x".to_owned())];
        for (arguments, from, to, change) in [
            ("leader_region => 'us-east'", &start, &end, "leader_region: Some(Some(\"us-east\"))"),
            ("leader_region => null", &start, &end, "leader_region: Some(None)"),
            ("voters => 5, from_key => 5", &at(&five_x[..1]), &end, "voters: Some(5)"),
            (
                "read_only => '{us-west,\"eu west\"}', to_key => row(5, 'x')",
                &start,
                &at(&five_x),
                "read_only: Some([\"us-west\", \"eu west\"])",
            ),
            (
                "regions => array['us-east', 'eu-west'::text], from_key => (1), to_key => (5, 'x')",
                &at(&[KeyValue::Int(1)]),
                &at(&five_x),
                "regions: Some([\"us-east\", \"eu-west\"])",
            ),
            (
                "read_only => array[]::text[], from_key => array[1], to_key => '5'",
                &at(&[KeyValue::Int(1)]),
                &at(&five_x[..1]),
                "read_only: Some([])",
            ),
        ] {
            let sql = format!("select meridian.place('t', {arguments})");
            assert_eq!(b.ok(&sql).await, "[place]\n7", "{sql}");
            let [call] = told(&b).try_into().expect("one call");
            let range = KeyRange { start: from.clone(), end: Some(to.clone()) };
            assert!(call.starts_with(&format!("place {range:?} ")), "{sql}: {call}");
            assert!(call.contains(change), "{sql}: {call}");
            assert_eq!(call.matches("Some(").count(), change.matches("Some(").count(), "{call}");
        }
        for (arguments, code, part) in [
            ("'t'", "22023", "is told to change nothing"),
            ("'t', voters => null", "22023", "is told to change nothing"),
            ("'t', voters => 0", "22023", "voters must be between 1 and 255"),
            ("'t', voters => 'many'", "22P02", "integer"),
            ("'t', regions => 'us-east'", "22P02", "malformed array literal"),
            ("'t', regions => array['a', null]", "22004", "\"regions\""),
            ("'t', regions => '{a,NULL}'", "22004", "\"regions\""),
            ("'t', regions => array[1]", "42846", "cannot cast"),
            ("'t', voters => 3, from_key => 5, to_key => 5", "22023", "there is no key from"),
            ("'t', voters => 3, from_key => 6, to_key => row(5, 'x')", "22023", "no key from"),
            ("'t', voters => 3, from_key => row(1, 'x', 2)", "22023", "a key of 2 columns"),
            ("'t', voters => 3, from_key => row(1, null)", "22004", "\"from_key\""),
            ("'nothing', voters => 3", "42P01", "does not exist"),
        ] {
            let sql = format!("select meridian.place({arguments})");
            let output = b.run(&sql).await;
            assert!(output.starts_with(&format!("ERROR {code}: ")), "{sql}: {output}");
            assert!(output.contains(part), "{sql}: {output}");
            assert!(told(&b).is_empty(), "{sql}");
        }
    });
}

#[test]
fn a_table_of_another_gateway_is_found() {
    with_bench(|mut b| async move {
        let mut other = b.other_gateway();
        b.ok("create table t (a int primary key)").await;
        let output = crate::tests::run(&mut other, "select meridian.split('t', 5)").await;
        assert_eq!(output, "[split]\n7");
    });
}

#[test]
fn no_key_lies_inside_a_directory() {
    let column = |id, name: &str| crate::catalog::ColumnInfo {
        id,
        name: name.to_owned(),
        pg_type: P::Int4,
        nullable: false,
        default: None,
    };
    let table = |id, name: &str, key: usize| TableInfo {
        id,
        schema: "public".to_owned(),
        name: name.to_owned(),
        version: 1,
        root: 100,
        columns: vec![column(1, "a"), column(2, "b")],
        primary_key: (0..key).collect(),
        interleaved: (id != 100).then_some(crate::catalog::Interleaved {
            parent: 100,
            on_delete: crate::catalog::OnDelete::NoAction,
            parent_key: 1,
            root_key: 1,
        }),
    };
    let (root, child) = (Arc::new(table(100, "root", 1)), Arc::new(table(101, "child", 2)));
    let snapshot = CatalogSnapshot::new(1, vec![Arc::clone(&root), Arc::clone(&child)]);
    let format = SessionFormat::default();
    let split = Function::named("split").next().expect("there is one");
    let five = Given::Text("5".to_owned());
    let of = |table| RootKey::of(&snapshot, table, &format).expect("its root is there");
    for table in [&root, &child] {
        let found = of(table).prefix(&[&five], split, &split.parameters[1]);
        assert_eq!(found.expect("a directory"), key(100, &[KeyValue::Int(5)]));
    }
    let inside = of(&child).prefix(&[&five, &five], split, &split.parameters[1]).unwrap_err();
    assert_eq!(inside.sqlstate, SqlState::INVALID_PARAMETER_VALUE);
    assert!(inside.message.contains("inside a directory of \"root\""), "{inside:?}");
    assert_eq!(inside.hint.as_deref(), Some("Give values for (a) at most."));
    assert_eq!(of(&root).range().expect("its own"), table_range(100));
    let error = of(&child).range().unwrap_err();
    assert!(error.message.contains("interleaved in \"root\""), "{error:?}");
}
