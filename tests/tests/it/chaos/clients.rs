//! Clients that write their keys, and clients that read everybody's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meridian_lab::{ClientError, Outcome, Reply};
use meridian_truetime::{Env, EnvironmentExt, Moment};
use rand::RngExt;
use rand::rngs::StdRng;

use super::model::{Fate, Kind, Row, Table};
use super::session::{Sessions, is_fault};
use super::{Stage, WRITERS};

/// How many rows a parent has below it, if any.
const CHILDREN: i64 = 3;

/// What went through.
#[derive(Debug, Default)]
pub struct Done {
    writes: AtomicU64,
    reads: AtomicU64,
    faults: AtomicU64,
}

impl Done {
    /// # Panics
    /// When it is too little to say anything. The few who read may all be cut off from a leader for
    /// most of the time.
    pub fn assert_enough(&self) {
        assert!(count(&self.writes) >= 20 && count(&self.reads) >= 1, "only {self}");
    }
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (writes, reads) = (count(&self.writes), count(&self.reads));
        write!(f, "{writes} writes, {reads} reads, {} failed", count(&self.faults))
    }
}

async fn think(env: &Env, rng: &mut StdRng, most: u64) {
    env.sleep(Duration::from_millis(rng.random_range(0..most))).await;
}

/// Writes one key after the other, of those that are this writer's.
pub async fn write(stage: Arc<Stage>, env: Env, writer: i64, until: Moment) {
    let mut rng = env.fork_rng();
    let mut sessions = Sessions::new(Arc::clone(&stage.cluster), Arc::clone(&env));
    while env.moment() < until {
        let table = Table::ALL[rng.random_range(0..3)];
        let key = |rng: &mut StdRng| rng.random_range(0..table.keys() / WRITERS) * WRITERS + writer;
        let (first, second) = (key(&mut rng), key(&mut rng));
        let both = table == Table::Lone && first != second;
        let present = |key| stage.model.key(table, key).present() == Some(true);
        if both && present(first) && present(second) && rng.random_bool(0.3) {
            write_two(&stage, &mut sessions, first, second).await;
        } else {
            write_one(&stage, &mut sessions, &mut rng, table, first).await;
        }
        think(&env, &mut rng, 200).await;
    }
}

/// What becomes of a write that failed.
fn fate(error: &ClientError) -> Fate {
    if error.outcome == Outcome::Unknown { Fate::Unknown } else { Fate::Refused }
}

async fn write_one(
    stage: &Stage,
    sessions: &mut Sessions,
    rng: &mut StdRng,
    table: Table,
    key: i64,
) {
    let known = stage.model.key(table, key);
    let present = known.present();
    let may_remove = table != Table::Parent && !known.haunted();
    let kind = match present {
        Some(false) => Kind::Insert,
        None if rng.random_bool(0.5) => Kind::Insert,
        Some(true) if may_remove && rng.random_bool(0.2) => Kind::Remove,
        _ => Kind::Update,
    };
    let parent = stage.model.key(Table::Parent, key).present();
    let number = stage.model.begin(table, key, kind);
    let sql = statement(table, key, kind, number);
    let result = sessions.run(&sql).await;
    let rows = if table == Table::Child { CHILDREN } else { 1 };
    let tag = match kind {
        Kind::Insert => format!("INSERT 0 {rows}"),
        Kind::Update => format!("UPDATE {rows}"),
        Kind::Remove => format!("DELETE {rows}"),
    };
    let fate = match result {
        Ok(reply) if reply.tag == tag => {
            add(&stage.done.writes);
            Fate::Acknowledged
        }
        // There was nothing.
        Ok(reply) if present.is_none() && kind == Kind::Update && reply.tag == "UPDATE 0" => {
            Fate::Refused
        }
        Ok(reply) => panic!("{sql}: {}; the row was {present:?}: {known:?}", reply.tag),
        Err(error) => {
            let there_already = kind == Kind::Insert && present.is_none();
            let no_parent = table == Table::Child && kind == Kind::Insert && parent != Some(true);
            let explained = match error.sqlstate.as_str() {
                "23505" => there_already,
                "23503" => no_parent,
                _ => is_fault(&error),
            };
            assert!(explained, "{sql}: {error}; the row was {present:?}: {known:?}");
            add(&stage.done.faults);
            fate(&error)
        }
    };
    stage.model.end(table, key, number, fate);
}

fn statement(table: Table, key: i64, kind: Kind, number: usize) -> String {
    let (name, column) = (table.name(), table.key());
    match (kind, table) {
        (Kind::Insert, Table::Child) => {
            let rows: Vec<_> =
                (0..CHILDREN).map(|c| format!("({key}, {c}, {number}, 1)")).collect();
            format!("INSERT INTO child VALUES {}", rows.join(", "))
        }
        (Kind::Insert, _) => format!("INSERT INTO {name} VALUES ({key}, {number}, 1)"),
        (Kind::Update, _) => {
            format!("UPDATE {name} SET v = {number}, n = n + 1 WHERE {column} = {key}")
        }
        (Kind::Remove, _) => format!("DELETE FROM {name} WHERE {column} = {key}"),
    }
}

/// Two rows in one statement, which may lie in two tablets: both are written or none.
async fn write_two(stage: &Stage, sessions: &mut Sessions, first: i64, second: i64) {
    let begin = |key| stage.model.begin(Table::Lone, key, Kind::Update);
    let (a, b) = (begin(first), begin(second));
    let sql = format!(
        "UPDATE lone SET v = CASE k WHEN {first} THEN {a} ELSE {b} END, n = n + 1 \
         WHERE k IN ({first}, {second})"
    );
    let fate = match sessions.run(&sql).await {
        Ok(reply) => {
            assert_eq!(reply.tag, "UPDATE 2", "{sql}");
            add(&stage.done.writes);
            Fate::Acknowledged
        }
        Err(error) => {
            let several_tablets = error.sqlstate == "0A000";
            assert!(several_tablets || is_fault(&error), "{sql}: {error}");
            add(&stage.done.faults);
            fate(&error)
        }
    };
    stage.model.end(Table::Lone, first, a, fate);
    stage.model.end(Table::Lone, second, b, fate);
}

/// Reads rows, ranges, tables and joins.
pub async fn read(stage: Arc<Stage>, env: Env, until: Moment) {
    let mut rng = env.fork_rng();
    let mut sessions = Sessions::new(Arc::clone(&stage.cluster), Arc::clone(&env));
    while env.moment() < until {
        think(&env, &mut rng, 300).await;
        let table = Table::ALL[rng.random_range(0..3)];
        let read = match rng.random_range(0..100) {
            0..45 => {
                let key = rng.random_range(0..table.keys());
                read_row(&stage, &mut sessions, table, key).await
            }
            45..60 => read_range(&stage, &mut sessions, &mut rng).await,
            60..75 => read_table(&stage, &mut sessions, table).await,
            75..85 => read_sum(&stage, &mut sessions, table).await,
            _ => read_join(&stage, &mut sessions).await,
        };
        match read {
            Ok(()) => add(&stage.done.reads),
            Err(error) => {
                assert!(is_fault(&error), "a read: {error}");
                add(&stage.done.faults);
            }
        }
    }
}

/// Reads everything, which has to succeed.
///
/// # Panics
/// When it fails.
pub async fn read_all(stage: &Stage, sessions: &mut Sessions) {
    for table in Table::ALL {
        read_table(stage, sessions, table).await.expect("healed, it serves");
        read_sum(stage, sessions, table).await.expect("healed, it serves");
    }
    read_join(stage, sessions).await.expect("healed, it serves");
    stage.done.assert_enough();
}

/// The numbers of a row.
fn numbers(row: &[Option<String>]) -> Vec<i64> {
    let number = |value: &Option<String>| match value {
        Some(text) => text.parse().unwrap_or_else(|_| panic!("no number: {row:?}")),
        None => panic!("NULL: {row:?}"),
    };
    row.iter().map(number).collect()
}

/// Rows of a key, v and n as the model sees them: each key once, in order; of a child's rows, which
/// are written together, all or none.
fn found(table: Table, reply: &Reply) -> BTreeMap<i64, Row> {
    let rows: Vec<Vec<i64>> = reply.rows.iter().map(|row| numbers(row)).collect();
    assert!(rows.is_sorted_by(|a, b| a < b && a[0] <= b[0]), "{table:?}: not in order: {rows:?}");
    let mut found: BTreeMap<i64, Vec<(i64, Row)>> = BTreeMap::new();
    for row in &rows {
        let (c, v, n) = match row[1..] {
            [v, n] => (0, v, n),
            [c, v, n] => (c, v, n),
            _ => panic!("{table:?}: {row:?}"),
        };
        found.entry(row[0]).or_default().push((c, (v, n)));
    }
    let all = if table == Table::Child { CHILDREN } else { 1 };
    let one = |(key, rows): (i64, Vec<(i64, Row)>)| {
        let (row, complete) = (rows[0].1, rows.iter().map(|(c, _)| *c).eq(0..all));
        let equal = rows.iter().all(|(_, other)| *other == row);
        assert!(complete && equal, "{table:?} {key}: {rows:?}");
        assert!((0..table.keys()).contains(&key), "{table:?}: there is no key {key}");
        (key, row)
    };
    found.into_iter().map(one).collect()
}

fn columns(table: Table) -> &'static str {
    match table {
        Table::Parent => "p, v, n",
        Table::Child => "p, c, v, n",
        Table::Lone => "k, v, n",
    }
}

fn order(table: Table) -> &'static str {
    if table == Table::Child { "p, c" } else { table.key() }
}

type Read = Result<(), ClientError>;

async fn read_row(stage: &Stage, sessions: &mut Sessions, table: Table, key: i64) -> Read {
    let least = stage.model.key(table, key).least();
    let (columns, name, column) = (columns(table), table.name(), table.key());
    let order = order(table);
    let sql = format!("SELECT {columns} FROM {name} WHERE {column} = {key} ORDER BY {order}");
    let rows = found(table, &sessions.run(&sql).await?);
    assert!(rows.keys().all(|other| *other == key), "{sql}: {rows:?}");
    stage.model.check(table, key, least, rows.get(&key).copied());
    Ok(())
}

/// The last rows of a range, from behind.
async fn read_range(stage: &Stage, sessions: &mut Sessions, rng: &mut StdRng) -> Read {
    let table = Table::Lone;
    let from = rng.random_range(0..table.keys());
    let to = rng.random_range(from..table.keys()) + 1;
    let limit = rng.random_range(1..8);
    let least = stage.model.least(table, from..to);
    let sql = format!(
        "SELECT k, v, n FROM lone WHERE k >= {from} AND k < {to} ORDER BY k DESC LIMIT {limit}"
    );
    let mut reply = sessions.run(&sql).await?;
    assert!(reply.rows.len() <= limit, "{sql}: {reply:?}");
    reply.rows.reverse();
    let rows = found(table, &reply);
    assert!(rows.keys().all(|key| (from..to).contains(key)), "{sql}: {rows:?}");
    let full = rows.len() == limit;
    let first = rows.keys().next().copied().filter(|_| full).unwrap_or(from);
    for (key, least) in least.range(first..) {
        stage.model.check(table, *key, *least, rows.get(key).copied());
    }
    Ok(())
}

async fn read_table(stage: &Stage, sessions: &mut Sessions, table: Table) -> Read {
    let least = stage.model.least(table, 0..table.keys());
    let (columns, name, order) = (columns(table), table.name(), order(table));
    let sql = format!("SELECT {columns} FROM {name} ORDER BY {order}");
    let rows = found(table, &sessions.run(&sql).await?);
    for (key, least) in least {
        stage.model.check(table, key, least, rows.get(&key).copied());
    }
    Ok(())
}

async fn read_sum(stage: &Stage, sessions: &mut Sessions, table: Table) -> Read {
    let least = stage.model.least(table, 0..table.keys());
    let rows = if table == Table::Child { "WHERE c = 1" } else { "" };
    let sql = format!("SELECT count(*), coalesce(sum(v), 0) FROM {} {rows}", table.name());
    let reply = sessions.run(&sql).await?;
    let [count, sum] = numbers(&reply.rows[0])[..] else { panic!("{sql}: {reply:?}") };
    stage.model.check_sum(table, &least, count, sum);
    Ok(())
}

/// Children beside their parents, at one timestamp.
async fn read_join(stage: &Stage, sessions: &mut Sessions) -> Read {
    let keys = || 0..Table::Parent.keys();
    let least = [Table::Parent, Table::Child].map(|table| stage.model.least(table, keys()));
    let sql = "SELECT child.p, c, child.v, child.n, parent.v, parent.n
               FROM child LEFT JOIN parent ON child.p = parent.p ORDER BY child.p, c";
    let reply = sessions.run(sql).await?;
    let half = |columns: [usize; 4]| {
        let pick = |row: &Vec<Option<String>>| columns.map(|at| row[at].clone()).to_vec();
        Reply { rows: reply.rows.iter().map(pick).collect(), tag: String::new() }
    };
    let children = found(Table::Child, &half([0, 1, 2, 3]));
    // The same one beside each of its children.
    let parents = found(Table::Child, &half([0, 1, 4, 5]));
    for key in keys() {
        let child = children.get(&key).copied();
        stage.model.check(Table::Child, key, least[1][&key], child);
        if let Some(parent) = parents.get(&key) {
            stage.model.check(Table::Parent, key, least[0][&key], Some(*parent));
        }
    }
    Ok(())
}
