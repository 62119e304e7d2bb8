//! Calls of the functions of the schema `meridian`, which change the cluster.
//!
//! `SELECT meridian.stop_node(3)` is recognized before anything is planned, so that neither planning
//! nor EXPLAIN carries it out. It stands alone in its statement; anywhere else the planner doesn't
//! know the function.

mod arguments;
mod keys;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{ArrayRef, BooleanArray, Int64Array};
use datafusion::sql::sqlparser::ast;
use meridian_storage::{KeyRange, TabletId};
use meridian_txn::PlacementChange;

use self::arguments::{Arguments, Given, Matched, row};
use self::keys::RootKey;
use super::utility::rows;
use super::{ColumnDescription, Inference, Outcome, Parameters, Session};
use crate::catalog::TableInfo;
use crate::cluster_view::{ClockChange, Effect, LinkChange};
use crate::error::{SqlError, SqlState};
use crate::meridian_schema::SCHEMA;
use crate::meridian_schema::functions::{Call as Does, Function, Kind, Returns};
use crate::plan::errors::txn_error;
use crate::plan::names::fold;
use crate::plan::planner::Scope;
use crate::types::PgType;

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// A statement that is a call.
pub(crate) struct ClusterCall<'a> {
    name: String,
    column: String,
    arguments: &'a [ast::FunctionArg],
    function: &'a ast::Function,
}

/// The call that the query is, if it is one.
pub(crate) fn cluster_call(query: &ast::Query) -> Option<ClusterCall<'_>> {
    let ast::SetExpr::Select(select) = query.body.as_ref() else { return None };
    let [item] = select.projection.as_slice() else { return None };
    let (expr, alias) = match item {
        ast::SelectItem::UnnamedExpr(expr) => (expr, None),
        ast::SelectItem::ExprWithAlias { expr, alias } => (expr, Some(fold(alias))),
        _ => return None,
    };
    let ast::Expr::Function(function) = expr else { return None };
    let name = name(&function.name)?;
    let ast::FunctionArguments::List(list) = &function.args else { return None };
    let alone = is_bare(query, select) && is_plain(function, list);
    let column = alias.unwrap_or_else(|| name.clone());
    alone.then_some(ClusterCall { name, column, arguments: &list.args, function })
}

/// The name of one of the functions.
fn name(name: &ast::ObjectName) -> Option<String> {
    let [ast::ObjectNamePart::Identifier(schema), ast::ObjectNamePart::Identifier(name)] =
        name.0.as_slice()
    else {
        return None;
    };
    let name = fold(name);
    (fold(schema) == SCHEMA && Function::named(&name).next().is_some()).then_some(name)
}

/// Whether the statement is nothing but a select list.
fn is_bare(query: &ast::Query, select: &ast::Select) -> bool {
    let groups = match &select.group_by {
        ast::GroupByExpr::All(_) => false,
        ast::GroupByExpr::Expressions(expressions, modifiers) => {
            expressions.is_empty() && modifiers.is_empty()
        }
    };
    query.with.is_none()
        && query.order_by.is_none()
        && query.limit_clause.is_none()
        && query.fetch.is_none()
        && query.locks.is_empty()
        && select.distinct.is_none()
        && select.into.is_none()
        && select.from.is_empty()
        && select.selection.is_none()
        && select.having.is_none()
        && groups
}

/// Whether the call has arguments and nothing else.
fn is_plain(function: &ast::Function, list: &ast::FunctionArgumentList) -> bool {
    matches!(function.parameters, ast::FunctionArguments::None)
        && function.filter.is_none()
        && function.null_treatment.is_none()
        && function.over.is_none()
        && function.within_group.is_empty()
        && list.duplicate_treatment.is_none()
        && list.clauses.is_empty()
}

impl ClusterCall<'_> {
    /// The columns of its result; what is known of its parameters goes to `inference`.
    ///
    /// # Errors
    /// `42883` when the arguments fit no signature.
    pub(super) fn describe(
        &self,
        scope: &Scope,
        inference: &mut Inference,
    ) -> Result<Arc<[ColumnDescription]>, SqlError> {
        let matched = Matched::new(&self.name, self.arguments)?;
        // A table that isn't there is told of when the call is carried out.
        let table = matched.by_parameter().find_map(|(parameter, expr)| {
            let constant = matches!(parameter.kind, Kind::Table).then(|| constant_text(expr));
            keys::table(scope, constant??).ok()
        });
        let mut place = 0;
        for (parameter, expr) in matched.by_parameter() {
            match parameter.kind {
                Kind::KeyColumns => {
                    expect_key(inference, table.as_deref(), place, expr);
                    place += 1;
                }
                Kind::Key => expect_row(inference, table.as_deref(), expr),
                kind => {
                    let of = kind.pg_type().unwrap_or(PgType::Unknown);
                    expect(inference, of, expr);
                }
            }
        }
        Ok(Arc::new([self.column_of(matched.function)]))
    }

    fn column_of(&self, function: &Function) -> ColumnDescription {
        ColumnDescription::new(self.column.clone(), function.returns.pg_type())
    }

    /// The call for EXPLAIN, which checks it and leaves it at that.
    ///
    /// # Errors
    /// What is wrong with the arguments.
    pub(crate) fn explain(
        &self,
        scope: &Scope,
        parameters: &Parameters,
    ) -> Result<String, SqlError> {
        let matched = Matched::new(&self.name, self.arguments)?;
        Arguments::read(&matched, parameters, &scope.format)?.check()?;
        Ok(format!("Call of {}", self.function))
    }

    /// `0A000`: EXPLAIN ANALYZE would have to carry it out.
    pub(crate) fn not_analyzed(&self) -> SqlError {
        let message = format!("EXPLAIN ANALYZE of {SCHEMA}.{} is not supported", self.name);
        SqlError::unsupported(message).detail("It would have to carry the call out.")
    }

    /// Carries the call out.
    ///
    /// # Errors
    /// What is wrong with the arguments, and whatever the cluster or its tablets say.
    pub(super) async fn run(
        &self,
        session: &mut Session,
        parameters: &Parameters,
    ) -> Result<Outcome, SqlError> {
        let matched = Matched::new(&self.name, self.arguments)?;
        let format = session.format();
        let arguments = Arguments::read(&matched, parameters, &format)?;
        let function = matched.function;
        let answer: ArrayRef = match function.returns {
            Returns::Changed => {
                let effect = change(session, function.call, &arguments).await?;
                effect.notices.into_iter().for_each(|notice| session.notice(notice));
                Arc::new(BooleanArray::from(vec![effect.changed]))
            }
            Returns::Tablet | Returns::Tablets => {
                let tablets = divide(session, function, &arguments).await?;
                let number = |tablet: TabletId| i64::try_from(tablet.get()).unwrap_or(i64::MAX);
                Arc::new(tablets.into_iter().map(number).collect::<Int64Array>())
            }
        };
        rows(vec![self.column_of(function)], vec![answer], "SELECT", true)
    }
}

/// What a text is that stands there as such.
fn constant_text(expr: &ast::Expr) -> Option<&str> {
    match expr {
        ast::Expr::Value(value) => match &value.value {
            ast::Value::SingleQuotedString(text) => Some(text),
            _ => None,
        },
        ast::Expr::Nested(inner) | ast::Expr::Cast { expr: inner, .. } => constant_text(inner),
        _ => None,
    }
}

/// A parameter stands where a value of the type is expected, unless a cast says otherwise.
fn expect(inference: &mut Inference, of: PgType, expr: &ast::Expr) {
    match expr {
        ast::Expr::Cast { expr: inner, data_type, .. } => {
            if let Ok(of) = PgType::from_sql(data_type) {
                expect(inference, of, inner);
            }
        }
        ast::Expr::Nested(inner) => expect(inference, of, inner),
        ast::Expr::Array(array) => {
            let element = match of {
                PgType::Array(element) => element.plain(),
                of => of,
            };
            array.elem.iter().for_each(|value| expect(inference, element, value));
        }
        expr => inference.expect(expr, of),
    }
}

fn expect_key(
    inference: &mut Inference,
    table: Option<&TableInfo>,
    place: usize,
    expr: &ast::Expr,
) {
    let column = table.and_then(|table| table.key_columns().nth(place));
    expect(inference, column.map_or(PgType::Unknown, |column| column.pg_type), expr);
}

fn expect_row(inference: &mut Inference, table: Option<&TableInfo>, expr: &ast::Expr) {
    let values: Vec<&ast::Expr> = match expr {
        ast::Expr::Tuple(values) => values.iter().collect(),
        ast::Expr::Array(array) => array.elem.iter().collect(),
        ast::Expr::Function(function) => row(function).into_iter().flatten().collect(),
        ast::Expr::Nested(inner) => return expect_row(inference, table, inner),
        expr => vec![expr],
    };
    for (place, value) in values.into_iter().enumerate() {
        expect_key(inference, table, place, value);
    }
}

/// The calls that answer whether they changed anything.
async fn change(
    session: &Session,
    call: Does,
    arguments: &Arguments<'_>,
) -> Result<Effect, SqlError> {
    let (cluster, tablets) = (&session.engine.cluster, &session.engine.tablets);
    match call {
        Does::StopNode => cluster.stop_node(arguments.node("node")?).await.map(Effect::from),
        Does::StartNode => cluster.start_node(arguments.node("node")?).await.map(Effect::from),
        Does::PauseNode => {
            let pause = arguments.duration_up_to("pause", LONGEST_PAUSE)?;
            cluster.pause_node(arguments.node("node")?, pause).await
        }
        Does::ResumeNode => cluster.resume_node(arguments.node("node")?).await,
        Does::Partition => {
            let both = arguments.boolean("both")?.unwrap_or(true);
            cluster.partition(&arguments.place("a")?, &arguments.place("b")?, both).await
        }
        Does::Heal => cluster.heal(between(arguments)?.as_ref()).await,
        Does::SetLatency => {
            let change = LinkChange {
                rtt: arguments.duration("rtt")?,
                jitter: arguments.duration("jitter")?,
                loss: arguments.between("loss", 0.0, 1.0)?,
            };
            if change == LinkChange::default() {
                return Err(nothing_given("set_latency", "rtt, jitter or loss"));
            }
            cluster.set_latency(&arguments.place("a")?, &arguments.place("b")?, change).await
        }
        Does::ResetLatency => cluster.reset_latency(between(arguments)?.as_ref()).await,
        Does::SetClock => {
            let change = ClockChange {
                epsilon: arguments.duration("epsilon")?,
                offset_nanos: arguments.signed_nanos("offset")?,
                drift_ppm: arguments.between("drift_ppm", -100_000.0, 100_000.0)?,
            };
            if change == ClockChange::default() {
                return Err(nothing_given("set_clock", "epsilon, offset or drift_ppm"));
            }
            cluster.set_clock(arguments.node("node")?, change).await
        }
        Does::TransferLeader => {
            let (tablet, node) = (arguments.tablet("tablet")?, arguments.node("node")?);
            let transferred = tablets.transfer_leader(tablet, node).await;
            transferred.map(|()| Effect::from(true)).map_err(|e| txn_error(&e))
        }
        Does::MoveReplica => {
            let (from, to) = (arguments.node("from_node")?, arguments.node("to_node")?);
            let moved = tablets.move_replica(arguments.tablet("tablet")?, from, to).await;
            moved.map(|()| Effect::from(true)).map_err(|e| txn_error(&e))
        }
        Does::Split | Does::Merge | Does::Place => {
            Err(SqlError::internal("a call that answers tablets"))
        }
    }
}

/// The two places of a call that may be about everything.
fn between(arguments: &Arguments<'_>) -> Result<Option<[crate::cluster_view::Place; 2]>, SqlError> {
    if arguments.is_empty() {
        return Ok(None);
    }
    Ok(Some([arguments.place("a")?, arguments.place("b")?]))
}

fn nothing_given(function: &str, what: &str) -> SqlError {
    let message = format!("{SCHEMA}.{function} is told to change nothing");
    SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message).hint(format!("Give {what}."))
}

/// The calls that answer tablets.
async fn divide(
    session: &Session,
    function: &Function,
    arguments: &Arguments<'_>,
) -> Result<Vec<TabletId>, SqlError> {
    let tablets = &session.engine.tablets;
    let answer = match function.call {
        Does::Split => {
            let key = with_table(session, arguments, |root| split_key(root, function, arguments));
            tablets.split(key.await?).await.map(|tablet| vec![tablet])
        }
        Does::Merge => tablets.merge(arguments.tablet("tablet")?).await.map(|left| vec![left]),
        Does::Place => {
            let change = placement(arguments)?;
            let range =
                with_table(session, arguments, |root| placed_range(root, function, arguments));
            tablets.place(&range.await?, change).await
        }
        _ => return Err(SqlError::internal("a call that answers no tablets")),
    };
    answer.map_err(|error| txn_error(&error))
}

/// Does something with the table that a call names. One that isn't there is looked for once more:
/// another gateway may have created it.
async fn with_table<T>(
    session: &Session,
    arguments: &Arguments<'_>,
    work: impl Fn(&RootKey<'_>) -> Result<T, SqlError>,
) -> Result<T, SqlError> {
    let name = arguments.text("table_name")?;
    let name = name.ok_or_else(|| SqlError::internal("a call without a table"))?;
    let attempt = |scope: &Scope| {
        let table = keys::table(scope, &name)?;
        work(&RootKey::of(&scope.snapshot, &table, arguments.format())?)
    };
    let scope = session.scope();
    match attempt(&scope) {
        Err(error) if super::catalog_may_lag(&error) => {
            if !session.refresh_if_older(scope.snapshot.version).await? {
                return Err(error);
            }
            attempt(&session.scope())
        }
        done => done,
    }
}

fn split_key(
    root: &RootKey<'_>,
    function: &Function,
    arguments: &Arguments<'_>,
) -> Result<Vec<u8>, SqlError> {
    let last = function.parameters.last();
    let parameter = last.ok_or_else(|| SqlError::internal("a split without a key"))?;
    root.prefix(&arguments.rest(), function, parameter)
}

/// From one key to in front of another; where one isn't given, the table's end.
fn placed_range(
    root: &RootKey<'_>,
    function: &Function,
    arguments: &Arguments<'_>,
) -> Result<KeyRange, SqlError> {
    let mut range = root.range()?;
    let bound = |name: &str| {
        let parameter = function.parameters.iter().find(|p| p.name == name);
        let parameter = parameter.ok_or_else(|| SqlError::internal("a place without bounds"))?;
        let values: Vec<&Given> = match arguments.given(name)? {
            None | Some(Given::Null) => return Ok(None),
            Some(Given::Row(values) | Given::Array(values)) => values.iter().collect(),
            Some(value) => vec![value],
        };
        root.prefix(&values, function, parameter).map(Some)
    };
    if let Some(start) = bound("from_key")? {
        range.start = start;
    }
    if let Some(end) = bound("to_key")? {
        range.end = Some(end);
    }
    if range.end.as_ref().is_some_and(|end| *end <= range.start) {
        let message = "there is no key from from_key up to to_key";
        return Err(SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message)
            .hint("from_key is the first key, to_key the first one behind the last."));
    }
    Ok(range)
}

fn placement(arguments: &Arguments<'_>) -> Result<PlacementChange, SqlError> {
    let leader_region = match arguments.given("leader_region")? {
        Some(Given::Null) => Some(None),
        _ => arguments.text("leader_region")?.map(Some),
    };
    let change = PlacementChange {
        voters: arguments.count("voters")?,
        regions: arguments.texts("regions")?,
        read_only: arguments.texts("read_only")?,
        leader_region,
    };
    if change == PlacementChange::default() {
        return Err(nothing_given("place", "leader_region, voters, regions or read_only"));
    }
    Ok(change)
}
