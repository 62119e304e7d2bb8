//! EXPLAIN: the plan as text, with the tablets that each scan touches.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, StringArray};
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::{ExecutionPlan, displayable};
use datafusion::sql::sqlparser::ast;
use datafusion::sql::unparser::Unparser;
use futures::TryStreamExt;
use meridian_storage::{KeyRange, TabletId, prefix_end};
use meridian_truetime::Timestamp;

use crate::catalog::{CatalogSnapshot, TableInfo};
use crate::codec::{self, PartialKey};
use crate::dml;
use crate::error::SqlError;
use crate::plan::errors::{sql_error, txn_error};
use crate::scan::ScanExec;
use crate::scan::exec::{Part, Scan};
use crate::scan::ranges::whole_table;
use crate::session::{self, ColumnDescription, Locking, Outcome, Parameters, Session};
use crate::tablets::Tablets;
use crate::types::PgType;

/// More key ranges of a tablet than this are counted, not shown.
const MAX_RANGES_SHOWN: usize = 8;

/// The column of EXPLAIN's result.
pub(crate) fn columns() -> Arc<[ColumnDescription]> {
    Arc::new([ColumnDescription::new("QUERY PLAN", PgType::Text)])
}

pub(crate) async fn explain(
    session: &Session,
    statement: &ast::Statement,
    parameters: &Parameters,
    as_of: Option<Timestamp>,
) -> Result<Outcome, SqlError> {
    let ast::Statement::Explain { statement, analyze, options, format, .. } = statement else {
        return Err(SqlError::internal("not an EXPLAIN"));
    };
    let analyze = *analyze || read_options(options.as_deref().unwrap_or_default())?;
    if format.is_some() {
        return Err(SqlError::unsupported("EXPLAIN with a format is not supported"));
    }
    let lines = match statement.as_ref() {
        ast::Statement::Query(query) => {
            explain_query(session, query, parameters, analyze, as_of).await?
        }
        ast::Statement::Insert(_) | ast::Statement::Update(_) | ast::Statement::Delete(_) => {
            if analyze {
                return Err(SqlError::unsupported("EXPLAIN ANALYZE of a write is not supported")
                    .detail("It would have to carry the write out."));
            }
            let (title, plan) = dml::explain(session, statement, parameters).await?;
            let mut lines = vec![title];
            if let Some(plan) = plan {
                render(session.engine().tablets.as_ref(), plan.as_ref(), 1, false, &mut lines);
            }
            lines
        }
        other => {
            let text = other.to_string();
            let word = text.split_whitespace().next().unwrap_or_default();
            return Err(SqlError::unsupported(format!("EXPLAIN {word} is not supported")));
        }
    };
    let text: ArrayRef = Arc::new(StringArray::from(lines));
    session::result_rows(columns().to_vec(), vec![text], "EXPLAIN", false)
}

/// Whether the options ask for ANALYZE. Those about what PostgreSQL would add are accepted.
fn read_options(options: &[ast::UtilityOption]) -> Result<bool, SqlError> {
    let mut analyze = false;
    for option in options {
        let name = option.name.value.to_ascii_lowercase();
        let argument = option.arg.as_ref().map(|arg| arg.to_string().to_ascii_lowercase());
        let off = matches!(argument.as_deref(), Some("false" | "off" | "0"));
        match name.as_str() {
            "analyze" => analyze = !off,
            "verbose" | "costs" | "buffers" | "timing" | "summary" | "settings" | "wal" => {}
            "format" if argument.as_deref() == Some("text") => {}
            _ => {
                return Err(SqlError::unsupported(format!(
                    "EXPLAIN option {option} is not supported"
                )));
            }
        }
    }
    Ok(analyze)
}

async fn explain_query(
    session: &Session,
    query: &ast::Query,
    parameters: &Parameters,
    analyze: bool,
    as_of: Option<Timestamp>,
) -> Result<Vec<String>, SqlError> {
    let scope = session.scope();
    if let Some(call) = session::cluster_call(query) {
        let line = call.explain(&scope, parameters)?;
        return if analyze { Err(call.not_analyzed()) } else { Ok(vec![line]) };
    }
    let Locking { query, modes, wait, skipping } = Locking::of(session, &scope, query)?;
    if analyze && skipping.is_some() {
        return Err(SqlError::unsupported("EXPLAIN ANALYZE with SKIP LOCKED is not supported"));
    }
    let plan = session::plan(session, &scope, None, &query, parameters)?;
    let physical = session::physical_plan(&scope, &plan).await.map_err(|e| sql_error(&e))?;
    let engine = session.engine();
    let mut lines = Vec::new();
    if !analyze {
        render(engine.tablets.as_ref(), physical.as_ref(), 0, false, &mut lines);
        return Ok(lines);
    }
    let env = engine.tablets.env();
    let began = env.moment();
    let reading = session.reading(physical.as_ref(), modes, wait, as_of);
    let statement = reading.await.map_err(|error| txn_error(&error))?;
    let mut rows = 0;
    {
        let batches = session::start(session, &scope, Arc::clone(&physical), statement);
        let mut batches = batches.map_err(|e| sql_error(&e))?;
        while let Some(batch) = batches.try_next().await.map_err(|e| sql_error(&e))? {
            rows += batch.num_rows();
        }
    }
    let took = env.moment().since(began);
    render(engine.tablets.as_ref(), physical.as_ref(), 0, true, &mut lines);
    lines.push(format!("Rows: {rows}"));
    lines.push(format!("Execution Time: {:.3} ms", took.as_secs_f64() * 1_000.0));
    Ok(lines)
}

/// The plan as an indented tree.
fn render(
    tablets: &dyn Tablets,
    plan: &dyn ExecutionPlan,
    depth: usize,
    analyzed: bool,
    lines: &mut Vec<String>,
) {
    let indent = if depth == 0 { String::new() } else { "      ".repeat(depth - 1) + "  ->  " };
    let below = "      ".repeat(depth) + "  ";
    if let Some(scan) = plan.downcast_ref::<ScanExec>() {
        lines.push(format!("{indent}{}", title(scan.scan())));
        lines
            .extend(details(tablets, scan.scan()).into_iter().map(|line| format!("{below}{line}")));
        if analyzed {
            lines.extend(actual(tablets, scan).into_iter().map(|line| format!("{below}{line}")));
        }
        return;
    }
    let one_line = displayable(plan).one_line().to_string();
    lines.push(format!("{indent}{}", one_line.trim().replace('\u{1}', "#")));
    for child in plan.children() {
        render(tablets, child.as_ref(), depth + 1, analyzed, lines);
    }
}

fn title(scan: &Scan) -> String {
    let direction = if scan.reverse { " backward" } else { "" };
    format!("Tablet Scan{direction} on {}.{}", scan.table.schema, scan.table.name)
}

fn details(tablets: &dyn Tablets, scan: &Scan) -> Vec<String> {
    let names: Vec<_> =
        scan.projection.iter().map(|&p| scan.table.columns[p].name.as_str()).collect();
    let mut lines = Vec::new();
    if !names.is_empty() {
        lines.push(format!("Columns: {}", names.join(", ")));
    }
    if scan.parts.is_empty() {
        lines.push("Tablets: none, no key can match".to_owned());
    }
    for Part { tablet, ranges } in &scan.parts {
        let leader = tablets.leader(tablet);
        let region = tablets.region(leader).map(|region| format!(" ({region})"));
        let place = format!("led by {leader}{}", region.unwrap_or_default());
        lines.push(format!("Tablet {}, {place}", tablet.id));
        lines.extend(ranges_of(&scan.table, ranges).into_iter().map(|line| format!("  {line}")));
    }
    if !scan.filters.is_empty() {
        let filters: Vec<_> = scan.filters.iter().map(filter_text).collect();
        lines.push(format!("Filter: {}", filters.join(" AND ")));
    }
    if let Some(limit) = scan.limit {
        lines.push(format!("Limit: {limit}"));
    }
    lines
}

/// A filter as SQL; what has no SQL, as DataFusion shows it.
fn filter_text(filter: &Expr) -> String {
    let filter = crate::plan::strip_qualifiers(filter);
    let sql = Unparser::default().with_pretty(true).expr_to_sql(&filter);
    sql.map_or_else(|_| filter.human_display().to_string(), |sql| sql.to_string())
}

/// What the scan did: the rows that it returned, where they came from and what that took.
fn actual(tablets: &dyn Tablets, scan: &ScanExec) -> Vec<String> {
    let metrics = scan.metrics();
    let rows = metrics
        .as_ref()
        .and_then(datafusion::physical_expr_common::metrics::MetricsSet::output_rows)
        .unwrap_or(0);
    let nanos = metrics
        .as_ref()
        .and_then(datafusion::physical_expr_common::metrics::MetricsSet::elapsed_compute)
        .unwrap_or(0);
    let millis = std::time::Duration::from_nanos(nanos as u64).as_secs_f64() * 1_000.0;
    let visits = scan.visits();
    let visited: BTreeSet<TabletId> = visits.iter().map(|(tablet, _)| *tablet).collect();
    let regions: BTreeSet<String> =
        visits.iter().filter_map(|(_, visit)| tablets.region(visit.node)).collect();
    let regions: Vec<String> = regions.into_iter().collect();
    // Of all tablets together, also where they were asked at the same time.
    let trips: u32 = visits.iter().map(|(_, visit)| visit.round_trips).sum();
    let lock_wait: std::time::Duration = visits.iter().map(|(_, visit)| visit.lock_wait).sum();
    let lock_wait = lock_wait.as_secs_f64() * 1_000.0;
    vec![
        format!("Actual: rows={rows} time={millis:.3} ms"),
        format!(
            "Visited: tablets={} regions={} round trips={trips} lock wait={lock_wait:.3} ms",
            visited.len(),
            if regions.is_empty() { "none".to_owned() } else { regions.join(", ") },
        ),
    ]
}

fn ranges_of(table: &TableInfo, ranges: &[KeyRange]) -> Vec<String> {
    if ranges.len() > MAX_RANGES_SHOWN {
        let first = readable_range(table, &ranges[0]);
        return vec![format!("Keys: {first}, and {} more ranges", ranges.len() - 1)];
    }
    ranges.iter().map(|range| format!("Keys: {}", readable_range(table, range))).collect()
}

/// A scan in one line, for DataFusion's own displays.
pub(crate) fn scan_line(scan: &Scan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "TabletScan: {}.{}", scan.table.schema, scan.table.name)
}

/// A range of a table's keys in terms of its columns.
pub(crate) fn readable_range(table: &TableInfo, range: &KeyRange) -> String {
    let whole = whole_table(table);
    if *range == whole {
        return "all".to_owned();
    }
    let start = PartialKey::read(table, &range.start);
    if range.end == prefix_end(&range.start) {
        return equalities(table, &start.values);
    }
    let (end, inclusive) = match &range.end {
        Some(end) => PartialKey::read_end(table, end),
        None => (PartialKey::default(), false),
    };
    // `[key]` as a point is `(key, key + 00)`.
    if let Some(bytes) = &range.end
        && bytes.strip_suffix(&[0]) == Some(range.start.as_slice())
    {
        return equalities(table, &start.values);
    }
    let (start, exclusive) = match range.start.as_slice() {
        bytes if start.complete => (start, bytes.is_empty()),
        bytes => PartialKey::read_end(table, bytes),
    };
    let common = start
        .values
        .iter()
        .zip(&end.values)
        .take_while(|(a, b)| a == b)
        .count()
        .min(start.values.len().max(end.values.len()).saturating_sub(1));
    let mut parts = Vec::new();
    if common > 0 {
        parts.push(equalities(table, &start.values[..common]));
    }
    if start.values.len() > common {
        let op = if exclusive { ">" } else { ">=" };
        parts.push(bound(table, common, op, &start.values[common..]));
    }
    if range.end.is_some() && *range != whole && end.values.len() > common {
        let op = if inclusive { "<=" } else { "<" };
        parts.push(bound(table, common, op, &end.values[common..]));
    }
    if parts.is_empty() { "all".to_owned() } else { parts.join(" AND ") }
}

fn equalities(table: &TableInfo, values: &[String]) -> String {
    if values.is_empty() {
        return "all".to_owned();
    }
    let parts: Vec<_> = table
        .key_columns()
        .zip(values)
        .map(|(column, value)| format!("{} = {value}", column.name))
        .collect();
    parts.join(" AND ")
}

fn bound(table: &TableInfo, skip: usize, op: &str, values: &[String]) -> String {
    let names: Vec<_> = table.key_columns().skip(skip).map(|column| column.name.as_str()).collect();
    match values {
        [value] => format!("{} {op} {value}", names.first().copied().unwrap_or_default()),
        values => {
            let count = values.len().min(names.len());
            format!("({}) {op} ({})", names[..count].join(", "), values.join(", "))
        }
    }
}

/// The table that a key belongs to.
pub(crate) fn table_of_key<'s>(
    snapshot: &'s CatalogSnapshot,
    key: &[u8],
) -> Option<&'s Arc<TableInfo>> {
    codec::table_of(snapshot, key)
}

/// One end of a tablet's range: `accounts (17)`, `accounts`, or none at the end of all keys.
pub(crate) fn readable_bound(snapshot: &CatalogSnapshot, key: Option<&[u8]>) -> String {
    let Some(key) = key else {
        return "end".to_owned();
    };
    if key.is_empty() {
        return "start".to_owned();
    }
    let Some(root) = codec::root_of(key) else {
        return format!("\\x{}", hex(key));
    };
    match codec::table_of(snapshot, key) {
        Some(table) => {
            let values = PartialKey::read(table, key).values;
            if values.is_empty() {
                table.name.clone()
            } else {
                format!("{} ({})", table.name, values.join(", "))
            }
        }
        None => format!("table {root}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
