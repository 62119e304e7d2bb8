//! A client's session: statements in, outcomes out.

mod calls;
mod computing;
mod locking;
mod outcome;
mod parameters;
mod query;
mod settings;
mod skip_locked;
mod staleness;
mod transaction;
mod utility;

pub(crate) use calls::cluster_call;
pub(crate) use locking::Locking;
pub use outcome::{ColumnDescription, Notice, Outcome, TransactionStatus};
pub(crate) use parameters::{Inference, placeholder};
pub(crate) use query::{
    QueryError, Reading, Staleness, bind, physical_plan, plan, rewritten, start,
};
pub use settings::SERVER_VERSION;
pub use transaction::Series;
pub(crate) use utility::rows as result_rows;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::datatypes::FieldRef;
use datafusion::common::ScalarValue;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::planner::ExprPlanner;
use datafusion::sql::sqlparser::ast;
use futures::FutureExt;
use meridian_truetime::{EnvironmentExt, Moment, Timestamp};
use meridian_txn::locks::Age;
use meridian_txn::{CommitProtocol, CommitReport};

use self::settings::Settings;
use self::transaction::Block;
use crate::catalog::CatalogSnapshot;
use crate::engine::Engine;
use crate::error::{SqlError, SqlState};
use crate::pg_catalog::{Backend, PgCatalog, SessionInfo};
use crate::plan::parse::{self, Kind, Statement};
use crate::plan::planner::{Relations, Scope, expr_planners};
use crate::scan::HighWater;
use crate::types::{PgType, SessionFormat, TimeZone};
use crate::{ddl, dml, explain, meridian_schema};

/// What a client says of itself when it connects.
#[derive(Clone, Debug, Default)]
pub struct SessionParameters {
    /// The user's name.
    pub user: String,
    /// The database's name.
    pub database: String,
    /// Its connection.
    pub backend: Backend,
    /// Initial values of settings, by name.
    pub options: BTreeMap<String, String>,
}

/// One client's session.
#[derive(Debug)]
pub struct Session {
    engine: Arc<Engine>,
    user: String,
    database: String,
    backend: Backend,
    settings: Settings,
    /// Counts changes of the settings.
    epoch: u64,
    high_water: HighWater,
    notices: Vec<Notice>,
    changes: Vec<(String, String)>,
    /// The transaction of several statements that is open.
    block: Option<Block>,
    /// The age of a transaction that lost a conflict, for the next one.
    retries: Option<Age>,
    /// A commit is under way.
    committing: bool,
    /// The last one, and how it was made.
    last_commit: Option<(CommitProtocol, CommitReport)>,
    /// DataFusion's state with this session's functions, for one snapshot and epoch.
    prepared_state: Mutex<Option<PreparedState>>,
}

#[derive(Clone)]
struct PreparedState {
    catalog: u64,
    epoch: u64,
    state: SessionState,
    relations: Arc<dyn Relations>,
    format: SessionFormat,
    planners: Arc<[Arc<dyn ExprPlanner>]>,
}

impl std::fmt::Debug for PreparedState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PreparedState").field("catalog", &self.catalog).finish_non_exhaustive()
    }
}

/// A statement with the types of its parameters and of its result.
#[derive(Clone, Debug)]
pub struct Prepared {
    inner: Arc<PreparedInner>,
}

#[derive(Debug)]
struct PreparedInner {
    statement: Statement,
    parameters: Vec<PgType>,
    columns: Option<Arc<[ColumnDescription]>>,
}

impl Prepared {
    /// The types of `$1`, `$2`, ...
    #[must_use]
    pub fn parameters(&self) -> &[PgType] {
        &self.inner.parameters
    }

    /// The result's columns, if it has rows.
    #[must_use]
    pub fn columns(&self) -> Option<&Arc<[ColumnDescription]>> {
        self.inner.columns.as_ref()
    }

    /// The statement.
    #[must_use]
    pub fn statement(&self) -> &Statement {
        &self.inner.statement
    }
}

/// A parameter's value and type as the client gave it.
#[derive(Clone, Debug)]
pub(crate) struct Parameters {
    pub(crate) types: Vec<PgType>,
    pub(crate) values: Vec<ScalarValue>,
}

impl Parameters {
    /// The fields to plan with: a `numeric` has the size of its value.
    pub(crate) fn fields(&self) -> Vec<Option<FieldRef>> {
        let field = |(pg_type, value): (&PgType, &ScalarValue)| {
            let field = pg_type.field("", true);
            let keep = value.is_null() || value.data_type() == *field.data_type();
            let field = if keep { field } else { field.with_data_type(value.data_type()) };
            Some(Arc::new(field))
        };
        self.types.iter().zip(&self.values).map(field).collect()
    }
}

impl Session {
    pub(crate) fn new(
        engine: Arc<Engine>,
        parameters: SessionParameters,
    ) -> Result<Self, SqlError> {
        let mut settings = Settings::new(&parameters.user, engine.protocol);
        for (name, value) in &parameters.options {
            settings.start_with(name, value)?;
        }
        Ok(Self {
            engine,
            user: parameters.user,
            database: parameters.database,
            backend: parameters.backend,
            settings,
            epoch: 0,
            high_water: HighWater::default(),
            notices: Vec::new(),
            changes: Vec::new(),
            block: None,
            retries: None,
            committing: false,
            last_commit: None,
            prepared_state: Mutex::default(),
        })
    }

    /// Splits a text into its statements and parses them.
    ///
    /// # Errors
    /// `42601` with the position, `54000` or `54001` for a text too long or too deep.
    pub fn parse(&self, sql: &str) -> Result<Vec<Statement>, SqlError> {
        parse::parse(sql)
    }

    /// Parses the one statement of the extended protocol, which may be empty.
    ///
    /// # Errors
    /// As [`Self::parse`]; `42601` if there are several.
    pub fn parse_one(&self, sql: &str) -> Result<Statement, SqlError> {
        parse::parse_one(sql)
    }

    /// Finds out the types of a statement's parameters and result.
    ///
    /// # Errors
    /// Whatever planning finds wrong.
    pub async fn prepare(
        &self,
        statement: &Statement,
        parameter_types: &[Option<PgType>],
    ) -> Result<Prepared, SqlError> {
        match statement.kind() {
            Kind::Control(_) | Kind::Empty => {}
            Kind::Sql(_) => self.check_not_failed()?,
        }
        let catalog = self.engine.catalog.snapshot().version;
        let described = match self.describe(statement, parameter_types) {
            Err(error) if catalog_may_lag(&error) => {
                // Another gateway may have changed it.
                if !self.refresh_if_older(catalog).await? {
                    return Err(error);
                }
                self.describe(statement, parameter_types)
            }
            described => described,
        };
        let (parameters, columns) = described?;
        let statement = statement.clone();
        Ok(Prepared { inner: Arc::new(PreparedInner { statement, parameters, columns }) })
    }

    /// A defect of a library must cost a statement, not the connection.
    fn describe(
        &self,
        statement: &Statement,
        given: &[Option<PgType>],
    ) -> Result<(Vec<PgType>, Option<Arc<[ColumnDescription]>>), SqlError> {
        let described = std::panic::catch_unwind(AssertUnwindSafe(|| {
            self.describe_unguarded(statement, given)
        }));
        described.unwrap_or_else(|panic| Err(panicked(&*panic)))
    }

    fn describe_unguarded(
        &self,
        statement: &Statement,
        given: &[Option<PgType>],
    ) -> Result<(Vec<PgType>, Option<Arc<[ColumnDescription]>>), SqlError> {
        let Some(ast) = statement.ast() else {
            return Ok((Vec::new(), None));
        };
        if let Some(columns) = utility::columns(self, ast)? {
            return Ok((Vec::new(), columns));
        }
        let scope = self.scope();
        let sql = Some(statement.shared_sql());
        parameters::describe(self, &scope, sql, ast, given)
    }

    /// Runs a statement. Whoever calls says of any error ([`Session::fail`]), and of the end of a
    /// series ([`Session::finish`]).
    ///
    /// # Errors
    /// Whatever is wrong with it. An error can also come from the stream of its rows.
    pub async fn execute(
        &mut self,
        prepared: &Prepared,
        parameters: Vec<ScalarValue>,
        series: Series,
    ) -> Result<Outcome, SqlError> {
        let ast = match prepared.inner.statement.kind() {
            Kind::Empty => return Ok(Outcome::Empty),
            Kind::Control(control) => {
                let control = Arc::clone(control);
                return self.control(&control).await;
            }
            Kind::Sql(ast) => Arc::clone(ast),
        };
        self.check_not_failed()?;
        let types = prepared.inner.parameters.clone();
        if types.len() != parameters.len() {
            let message = format!(
                "bind message supplies {} parameters, but prepared statement requires {}",
                parameters.len(),
                types.len()
            );
            return Err(SqlError::new(SqlState::PROTOCOL_VIOLATION, message));
        }
        let parameters = Parameters { types, values: parameters };
        let env = Arc::clone(self.engine.tablets.env());
        let timeout = self.settings.statement_timeout();
        let run = AssertUnwindSafe(self.run(prepared, &ast, &parameters, series)).catch_unwind();
        let run = run.map(|outcome| outcome.unwrap_or_else(|panic| Err(panicked(&*panic))));
        let Some(timeout) = timeout else {
            return run.await;
        };
        let deadline = env.moment().plus(timeout);
        match env.timeout(timeout, run).await {
            Ok(outcome) => Ok(until(outcome?, env, deadline)),
            Err(_) => Err(self.interrupted("canceling statement due to statement timeout")),
        }
    }

    async fn run(
        &mut self,
        prepared: &Prepared,
        ast: &ast::Statement,
        parameters: &Parameters,
        series: Series,
    ) -> Result<Outcome, SqlError> {
        match ast {
            ast::Statement::Query(query) => {
                if let Some(call) = cluster_call(query) {
                    return call.run(self, parameters).await;
                }
                let as_of = self.as_of(prepared)?;
                if as_of.is_none() && (series == Series::Part || !query.locks.is_empty()) {
                    self.open_series();
                }
                self.use_block();
                let sql = prepared.inner.statement.shared_sql();
                let outcome = query::select(self, Some(sql), query, parameters, as_of).await?;
                same_columns(prepared, &outcome)?;
                Ok(outcome)
            }
            ast::Statement::Insert(_) | ast::Statement::Update(_) | ast::Statement::Delete(_) => {
                let statement = dml::Dml::of(ast)?;
                self.check_may_write(statement.verb())?;
                if series == Series::Part {
                    self.open_series();
                }
                self.use_block();
                dml::run(self, &statement, parameters).await
            }
            ast::Statement::CreateTable(create) => {
                self.check_may_write("CREATE TABLE")?;
                self.stand_alone("CREATE TABLE").await?;
                ddl::create_table(self, create).await
            }
            ast::Statement::AlterTable(alter) => {
                self.check_may_write("ALTER TABLE")?;
                self.stand_alone("ALTER TABLE").await?;
                ddl::alter_table(self, alter).await
            }
            ast::Statement::Drop { .. } => {
                self.check_may_write("DROP TABLE")?;
                self.stand_alone("DROP TABLE").await?;
                ddl::drop(self, ast).await
            }
            ast::Statement::Explain { .. } => {
                let as_of = self.as_of(prepared)?;
                if as_of.is_none() && series == Series::Part {
                    self.open_series();
                }
                self.use_block();
                explain::explain(self, ast, parameters, as_of).await
            }
            other => utility::run(self, other),
        }
    }

    /// The point in time that a statement itself names.
    fn as_of(&self, prepared: &Prepared) -> Result<Option<Timestamp>, SqlError> {
        let Some(time) = prepared.inner.statement.as_of() else { return Ok(None) };
        if self.block.is_some() {
            return Err(SqlError::unsupported("AS OF SYSTEM TIME inside a transaction")
                .detail("All of a transaction reads at one time.")
                .hint("Say it once: BEGIN READ ONLY AS OF SYSTEM TIME ..."));
        }
        self.point_in_time(time).map(Some)
    }

    /// What the statement in hand is planned in.
    pub(crate) fn scope(&self) -> Scope {
        let snapshot = self.engine.catalog.snapshot();
        let PreparedState { mut state, relations, format, planners, .. } =
            self.state_for(&snapshot);
        let began = self.block.as_ref().map(|block| block.began);
        let now = began.unwrap_or_else(|| self.engine.tablets.now().middle()).to_utc();
        let options = Arc::clone(state.config_options());
        let properties = state.execution_props_mut();
        properties.mark_start_execution(options);
        properties.query_execution_start_time = Some(now);
        Scope {
            snapshot,
            relations,
            state,
            database: self.database.clone(),
            search_path: self.settings.search_path(&self.user),
            format,
            planners,
        }
    }

    fn state_for(&self, snapshot: &Arc<CatalogSnapshot>) -> PreparedState {
        let mut cached = self.prepared_state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cached) = cached.as_ref()
            && cached.catalog == snapshot.version
            && cached.epoch == self.epoch
        {
            return cached.clone();
        }
        let postgres =
            PgCatalog::new(Arc::clone(snapshot), meridian_schema::views(), Arc::new(self.info()));
        let mut state = self.engine.base.clone();
        for function in postgres.functions() {
            register(&mut state, function);
        }
        let zone = Some(self.settings.time_zone().to_owned());
        state.config_mut().options_mut().execution.time_zone = zone;
        let relations = self.engine.relations(Arc::clone(snapshot), postgres.schemas());
        let format = self.format();
        let fresh = PreparedState {
            catalog: snapshot.version,
            epoch: self.epoch,
            state,
            relations,
            planners: expr_planners(&format),
            format,
        };
        *cached = Some(fresh.clone());
        fresh
    }

    /// How values are written for the client.
    #[must_use]
    pub fn format(&self) -> SessionFormat {
        let time_zone = TimeZone::parse(self.settings.time_zone());
        // A zone that doesn't parse is refused when it is set.
        SessionFormat { time_zone: time_zone.unwrap_or_else(|_| TimeZone::utc()) }
    }

    fn info(&self) -> SessionInfo {
        SessionInfo {
            user: self.user.clone(),
            database: self.database.clone(),
            backend: self.backend.clone(),
            settings: self
                .settings
                .all()
                .map(|(name, value, _)| (name.to_lowercase(), value.to_owned()))
                .collect(),
        }
    }

    /// Reads the catalog again; whether it is another than the one of that version.
    pub(crate) async fn refresh_if_older(&self, version: u64) -> Result<bool, SqlError> {
        Ok(self.engine.catalog.refresh().await?.version != version)
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    pub(crate) fn high_water(&self) -> &HighWater {
        &self.high_water
    }

    pub(crate) fn notice(&mut self, notice: Notice) {
        self.notices.push(notice);
    }

    /// How long the client may take between two statements of a transaction.
    #[must_use]
    pub fn idle_timeout(&self) -> Option<std::time::Duration> {
        self.block.as_ref().and(self.settings.idle_in_transaction_timeout())
    }

    /// What the client is to be told since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Reported settings that changed since the last call: `ParameterStatus`.
    pub fn take_parameter_changes(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.changes)
    }

    /// The settings that a client is told when it connects.
    #[must_use]
    pub fn reported_parameters(&self) -> Vec<(String, String)> {
        self.settings.reported()
    }

    /// The present value of a setting.
    ///
    /// # Errors
    /// `42704` for an unknown name.
    pub fn setting(&self, name: &str) -> Result<&str, SqlError> {
        Ok(self.settings.get(name)?.1)
    }
}

/// Registers a function under its name and aliases, in place of any other.
fn register(state: &mut SessionState, function: datafusion::logical_expr::ScalarUDF) {
    use datafusion::execution::FunctionRegistry;
    // The error case is a registry that doesn't take functions.
    let _ = state.register_udf(Arc::new(function));
}

/// Whether the error may be gone once the catalog is read again: it says that a statement doesn't
/// fit the tables as this gateway knows them.
pub(crate) fn catalog_may_lag(error: &SqlError) -> bool {
    let code = error.sqlstate.code();
    let of_the_schema = code.starts_with("22") || code.starts_with("42") || code == "3F000";
    of_the_schema
        || [SqlState::NOT_NULL_VIOLATION, SqlState::FOREIGN_KEY_VIOLATION].contains(&error.sqlstate)
}

/// A result that no longer is what the client was told would break it.
fn same_columns(prepared: &Prepared, outcome: &Outcome) -> Result<(), SqlError> {
    let (Some(told), Outcome::Rows { columns, .. }) = (&prepared.inner.columns, outcome) else {
        return Ok(());
    };
    let same = told.len() == columns.len()
        && told.iter().zip(columns.iter()).all(|(a, b)| a.name == b.name && a.pg_type == b.pg_type);
    if same {
        return Ok(());
    }
    Err(SqlError::unsupported("cached plan must not change result type"))
}

/// A panic in a library, as an error of the statement that set it off.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> SqlError {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("of an unknown kind");
    tracing::error!(text, "a statement ended with a panic");
    SqlError::internal("the statement met a defect of the server").detail(format!("{text}."))
}

fn timed_out() -> SqlError {
    SqlError::new(SqlState::QUERY_CANCELED, "canceling statement due to statement timeout")
}

/// Ends the stream of rows with an error at the deadline.
fn until(outcome: Outcome, env: meridian_truetime::Env, deadline: Moment) -> Outcome {
    use futures::StreamExt;
    use futures::future::{Either, select};
    let Outcome::Rows { columns, batches, tag, counted } = outcome else {
        return outcome;
    };
    let timer = env.sleep_until(deadline);
    let batches = futures::stream::unfold(Some((batches, timer)), |state| async {
        let (mut batches, timer) = state?;
        match select(batches.next(), timer).await {
            Either::Left((next, timer)) => next.map(|batch| (batch, Some((batches, timer)))),
            Either::Right(((), _)) => Some((Err(timed_out()), None)),
        }
    });
    Outcome::Rows { columns, batches: batches.boxed(), tag, counted }
}
