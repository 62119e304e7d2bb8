//! `meridian status`: how a cluster stands, asked of any node over SQL.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::Duration;

use chrono::{DateTime, Utc};
use meridian_truetime::{Env, EnvironmentExt, World};
use meridian_txn::SYSTEM_TABLET;
use serde::Serialize;
use tokio_postgres::{Client, NoTls};

use crate::banner::{right_align, table};
use crate::cli::{Address, StatusArgs};
use crate::config::fresh_seed;
use crate::console::StopSignals;

/// How long it may take to connect.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the answers may take: longer than a node waits for those that don't answer it.
const ANSWER: Duration = Duration::from_secs(20);
/// Between two looks.
const AGAIN: Duration = Duration::from_secs(1);

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Nobody is there.
    #[error("{address} can't be reached: {reason}")]
    Unreachable {
        /// Where.
        address: Address,
        /// Why.
        reason: String,
    },
    /// Somebody is there who doesn't answer as a node does.
    #[error("{address} doesn't say how its cluster stands: {reason}")]
    Answer {
        /// Where.
        address: Address,
        /// Why.
        reason: String,
    },
    /// Signals or the terminal don't work.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl StatusError {
    /// What can be done about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unreachable { .. } => {
                Some("Name a running node's address for SQL with --connect HOST:PORT.")
            }
            Self::Answer { .. } => Some("Ask another node, or look at this one's log."),
            Self::Io(_) => None,
        }
    }
}

/// How a cluster stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Status {
    nodes: Vec<NodeStatus>,
    tablets: Vec<TabletStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct NodeStatus {
    node: i64,
    region: String,
    sql_address: Option<String>,
    state: String,
    started: Option<DateTime<Utc>>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct TabletStatus {
    tablet: i64,
    table: Option<String>,
    range_start: String,
    range_end: String,
    leader: Option<i64>,
    size_bytes: Option<i64>,
    replicas: Vec<ReplicaStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct ReplicaStatus {
    node: i64,
    /// Whether its node has answered; nothing else is known if it hasn't.
    reachable: bool,
    leads: bool,
    applied_index: Option<i64>,
    /// How many entries it has applied less than the replica that is the farthest.
    lag: Option<i64>,
    last_write: Option<DateTime<Utc>>,
}

/// Shows how a cluster stands, once or until it is told to stop.
///
/// # Errors
/// If it can't be found out; with `--watch`, the first time only.
pub async fn run(args: StatusArgs) -> Result<(), StatusError> {
    match look(args).await {
        // Nobody reads any more.
        Err(StatusError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

async fn look(args: StatusArgs) -> Result<(), StatusError> {
    let env: Env = World::real(fresh_seed()).node(0);
    let first = ask(&env, &args.connect).await?;
    if args.json {
        let document = serde_json::to_string_pretty(&first).map_err(io::Error::other)?;
        return Ok(print(&document)?);
    }
    if !args.watch {
        return Ok(print(&show(&first))?);
    }
    let mut stop = StopSignals::new()?;
    let clear = if io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
    let mut text = show(&first);
    loop {
        print(&format!("{clear}{text}\n"))?;
        let next = async {
            env.sleep(AGAIN).await;
            ask(&env, &args.connect).await
        };
        text = tokio::select! {
            status = next => status.map_or_else(|error| format!("error: {error}"), |s| show(&s)),
            () = stop.next() => return Ok(()),
        };
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush())
}

async fn ask(env: &Env, address: &Address) -> Result<Status, StatusError> {
    let unreachable =
        |reason: String| StatusError::Unreachable { address: address.clone(), reason };
    let mut config = tokio_postgres::Config::new();
    config.host(&address.host).port(address.port).user("meridian").dbname("meridian");
    config.application_name("meridian status");
    let (client, connection) = match env.timeout(CONNECT, config.connect(NoTls)).await {
        Ok(connected) => connected.map_err(|error| unreachable(reason(&error)))?,
        Err(_) => return Err(unreachable(format!("no answer within {} s", CONNECT.as_secs()))),
    };
    env.spawn(async move {
        // An error here is an error of the client's next statement.
        let _ = connection.await;
    });
    let failed = |reason| StatusError::Answer { address: address.clone(), reason };
    match env.timeout(ANSWER, read(&client)).await {
        Ok(read) => read.map_err(|error| failed(reason(&error))),
        Err(_) => Err(failed(format!("no answer within {} s", ANSWER.as_secs()))),
    }
}

/// What the other side says, or else the first cause.
fn reason(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return format!("{} ({})", error.message(), error.code().code());
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

async fn read(client: &Client) -> Result<Status, tokio_postgres::Error> {
    let nodes = "SELECT node, region, sql_address, state, started FROM meridian.nodes ORDER BY 1";
    let tablets = "SELECT tablet, table_name, range_start, range_end, leader, size_bytes, replicas
                   FROM meridian.tablets ORDER BY 1";
    let replicas = "SELECT tablet, node, leads, applied_index, last_write
                    FROM meridian.replicas ORDER BY 1, 2";
    let mut status = Status { nodes: Vec::new(), tablets: Vec::new() };
    for row in client.query(nodes, &[]).await? {
        status.nodes.push(NodeStatus {
            node: row.try_get(0)?,
            region: row.try_get(1)?,
            sql_address: row.try_get(2)?,
            state: row.try_get(3)?,
            started: row.try_get(4)?,
        });
    }
    let mut found: BTreeMap<i64, Vec<ReplicaStatus>> = BTreeMap::new();
    for row in client.query(replicas, &[]).await? {
        found.entry(row.try_get(0)?).or_default().push(ReplicaStatus {
            node: row.try_get(1)?,
            reachable: true,
            leads: row.try_get(2)?,
            applied_index: row.try_get(3)?,
            lag: None,
            last_write: row.try_get(4)?,
        });
    }
    for row in client.query(tablets, &[]).await? {
        let tablet = row.try_get(0)?;
        let members: String = row.try_get(6)?;
        let replicas = with_lag(&members, found.remove(&tablet).unwrap_or_default());
        status.tablets.push(TabletStatus {
            tablet,
            table: row.try_get(1)?,
            range_start: row.try_get(2)?,
            range_end: row.try_get(3)?,
            leader: row.try_get(4)?,
            size_bytes: row.try_get(5)?,
            replicas,
        });
    }
    Ok(status)
}

/// A tablet's replicas: those that have answered, with their lag, and the members that have not.
fn with_lag(members: &str, mut answered: Vec<ReplicaStatus>) -> Vec<ReplicaStatus> {
    let farthest = answered.iter().filter_map(|replica| replica.applied_index).max();
    for replica in &mut answered {
        replica.lag = farthest.zip(replica.applied_index).map(|(most, applied)| most - applied);
    }
    let members = members.trim_matches(['{', '}']).split(',').filter_map(|id| id.parse().ok());
    for node in members {
        if answered.iter().all(|replica| replica.node != node) {
            answered.push(ReplicaStatus {
                node,
                reachable: false,
                leads: false,
                applied_index: None,
                lag: None,
                last_write: None,
            });
        }
    }
    answered.sort_by_key(|replica| replica.node);
    answered
}

fn show(status: &Status) -> String {
    let mut nodes = table();
    nodes.set_header(["node", "region", "SQL", "state", "since"]);
    for node in &status.nodes {
        let since = node.started.map(|started| started.format("%F %T UTC").to_string());
        nodes.add_row([
            node.node.to_string(),
            node.region.clone(),
            node.sql_address.clone().unwrap_or_default(),
            node.state.clone(),
            since.unwrap_or_default(),
        ]);
    }
    right_align(&mut nodes, 0..1);
    let mut tablets = table();
    tablets.set_header(["tablet", "table", "from", "to", "leader", "replicas", "size"]);
    for tablet in &status.tablets {
        tablets.add_row([
            tablet.tablet.to_string(),
            tablet.table.clone().unwrap_or_else(|| unnamed(tablet).to_owned()),
            tablet.range_start.clone(),
            tablet.range_end.clone(),
            tablet.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string()),
            tablet.replicas.iter().map(one).collect::<Vec<_>>().join(", "),
            tablet.size_bytes.map(size).unwrap_or_default(),
        ]);
    }
    right_align(&mut tablets, 0..1);
    right_align(&mut tablets, 6..7);
    let mut text = nodes.trim_fmt();
    let _ = write!(text, "\n{}", tablets.trim_fmt());
    text.push_str("\nreplicas: the nodes, each with how many log entries it is behind");
    text
}

/// What a tablet without a table is for.
fn unnamed(tablet: &TabletStatus) -> &'static str {
    if tablet.tablet.unsigned_abs() == SYSTEM_TABLET.get() { "(system)" } else { "" }
}

/// A replica in a list: the node, and what is not as it should be.
fn one(replica: &ReplicaStatus) -> String {
    match replica.lag {
        _ if !replica.reachable => format!("{} (unreachable)", replica.node),
        None | Some(0) => replica.node.to_string(),
        Some(lag) => format!("{} (-{lag})", replica.node),
    }
}

#[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
fn size(bytes: i64) -> String {
    let units = [(1_i64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(node: i64, applied: i64) -> ReplicaStatus {
        ReplicaStatus {
            node,
            reachable: true,
            leads: node == 1,
            applied_index: Some(applied),
            lag: None,
            last_write: None,
        }
    }

    #[test]
    fn replicas_that_lag_or_are_not_there_are_seen() {
        let replicas = with_lag("{1,2,3}", vec![replica(1, 90), replica(3, 77)]);
        let lags: Vec<_> = replicas.iter().map(|r| (r.node, r.reachable, r.lag)).collect();
        assert_eq!(lags, [(1, true, Some(0)), (2, false, None), (3, true, Some(13))]);
        let tablet = TabletStatus {
            tablet: 7,
            table: Some("public.t".into()),
            range_start: "a".into(),
            range_end: "b".into(),
            leader: Some(1),
            size_bytes: Some(1_536),
            replicas,
        };
        let node = NodeStatus {
            node: 1,
            region: "us-east".into(),
            sql_address: None,
            state: "running".into(),
            started: None,
        };
        let text = show(&Status { nodes: vec![node], tablets: vec![tablet] });
        for part in ["us-east", "running", "1, 2 (unreachable), 3 (-13)", "1.5 KiB", "public.t"] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
    }
}
