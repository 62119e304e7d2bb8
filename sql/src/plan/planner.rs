//! Statements to DataFusion's plans, over one snapshot of the catalog.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, FieldRef, SchemaRef};
use datafusion::catalog::cte_worktable::CteWorkTable;
use datafusion::catalog::{TableFunctionArgs, TableProvider};
use datafusion::common::config::ConfigOptions;
use datafusion::common::{DFSchema, Result, TableReference};
use datafusion::config::SqlParserOptions;
use datafusion::datasource::provider_as_source;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::execution::{SessionStateDefaults, runtime_env::RuntimeEnv};
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner, TypePlanner};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{
    AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, ScalarUDF, TableSource, WindowUDF,
};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::prelude::SessionConfig;
use datafusion::sql::planner::{NullOrdering, ParserOptions, PlannerContext, SqlToRel};
use datafusion::sql::sqlparser::ast;

use super::errors::sql_error;
use super::literals::{PgExprPlanner, PgTypePlanner, external, settle};
use super::{checked, clock_functions};
use crate::catalog::{CatalogSnapshot, TableInfo};
use crate::error::{SqlError, SqlState};
use crate::types::SessionFormat;

/// Finds tables that aren't the catalog's own rows.
pub(crate) trait Relations: Send + Sync {
    /// The table of that schema and name.
    fn table(&self, schema: &str, name: &str) -> Option<Arc<dyn TableProvider>>;

    /// Whether there is such a schema.
    fn has_schema(&self, schema: &str) -> bool;
}

/// What one statement is planned in.
pub(crate) struct Scope {
    pub(crate) snapshot: Arc<CatalogSnapshot>,
    pub(crate) relations: Arc<dyn Relations>,
    pub(crate) state: SessionState,
    pub(crate) database: String,
    pub(crate) search_path: Vec<String>,
    pub(crate) format: SessionFormat,
    pub(crate) planners: Arc<[Arc<dyn ExprPlanner>]>,
}

/// DataFusion's state with PostgreSQL's types, functions and rules; sessions copy it.
pub(crate) fn base_state(runtime: Arc<RuntimeEnv>) -> SessionState {
    let config = SessionConfig::new()
        .with_target_partitions(1)
        .with_information_schema(false)
        .with_create_default_catalog_and_schema(false)
        .with_batch_size(2_048)
        .with_round_robin_repartition(false)
        .set_bool("datafusion.sql_parser.parse_float_as_decimal", true)
        .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false)
        .set_str("datafusion.execution.time_zone", "UTC");
    let mut functions = SessionStateDefaults::default_scalar_functions();
    functions.extend(clock_functions::functions());
    functions.push(super::cast::function());
    SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_default_features()
        .with_type_planner(Arc::new(PgTypePlanner))
        .with_scalar_functions(functions)
        .with_physical_optimizer_rule(Arc::new(checked::CheckedArithmetic))
        .build()
}

/// The planners of expressions for a session's settings.
pub(crate) fn expr_planners(format: &SessionFormat) -> Arc<[Arc<dyn ExprPlanner>]> {
    let mut planners: Vec<Arc<dyn ExprPlanner>> =
        vec![Arc::new(PgExprPlanner { format: format.clone() })];
    planners.extend(SessionStateDefaults::default_expr_planners());
    planners.into()
}

impl Scope {
    /// The table that a name stands for.
    ///
    /// # Errors
    /// `42P01` if there is none.
    pub(crate) fn resolve(
        &self,
        name: &TableReference,
    ) -> Result<Arc<dyn TableProvider>, SqlError> {
        let found = match name {
            TableReference::Bare { table } => std::iter::once("pg_catalog")
                .chain(self.search_path.iter().map(String::as_str))
                .find_map(|schema| self.relations.table(schema, table)),
            TableReference::Partial { schema, table } => self.relations.table(schema, table),
            TableReference::Full { catalog, schema, table } => {
                if catalog.as_ref() != self.database {
                    return Err(SqlError::unsupported(format!(
                        "cross-database references are not implemented: \"{catalog}.{schema}.{table}\""
                    )));
                }
                self.relations.table(schema, table)
            }
        };
        found.ok_or_else(|| undefined_table(name))
    }

    /// The table of the catalog that a name stands for.
    pub(crate) fn table_named(&self, name: &TableReference) -> Option<Arc<TableInfo>> {
        let table = |schema: &str| self.snapshot.table(schema, name.table()).cloned();
        match name.schema() {
            Some(schema) => table(schema),
            None => self.search_path.iter().find_map(|schema| table(schema)),
        }
    }

    /// The first schema of the search path that exists: where unqualified names are created.
    pub(crate) fn current_schema(&self) -> Option<&str> {
        self.search_path.iter().map(String::as_str).find(|schema| self.relations.has_schema(schema))
    }

    /// A query's plan, not optimized.
    pub(crate) fn plan_query(
        &self,
        query: ast::Query,
        parameters: &[Option<FieldRef>],
    ) -> Result<LogicalPlan, SqlError> {
        refuse_locks(&query)?;
        let planner = SqlToRel::new_with_options(self, parser_options());
        let mut context = PlannerContext::new().with_prepare_param_data_types(parameters.to_vec());
        let statement = ast::Statement::Query(Box::new(query));
        let plan = planner
            .sql_statement_to_plan_with_context(statement, &mut context)
            .and_then(|plan| settle(plan, &self.format))
            .map_err(|e| sql_error(&e))?;
        Ok(plan)
    }

    /// An expression over the columns of `schema`.
    pub(crate) fn plan_expression(
        &self,
        expression: ast::Expr,
        schema: &DFSchema,
        parameters: &[Option<FieldRef>],
    ) -> Result<Expr, SqlError> {
        let planner = SqlToRel::new_with_options(self, parser_options());
        let mut context = PlannerContext::new().with_prepare_param_data_types(parameters.to_vec());
        planner.sql_to_expr(expression, schema, &mut context).map_err(|e| sql_error(&e))
    }

    /// Analyzes and optimizes.
    pub(crate) fn optimize(&self, plan: &LogicalPlan) -> Result<LogicalPlan, SqlError> {
        self.state.optimize(plan).map_err(|e| sql_error(&e))
    }
}

pub(crate) fn undefined_table(name: &TableReference) -> SqlError {
    let name = match name {
        TableReference::Bare { table } => table.to_string(),
        TableReference::Partial { schema, table } => format!("{schema}.{table}"),
        TableReference::Full { catalog, schema, table } => format!("{catalog}.{schema}.{table}"),
    };
    SqlError::new(SqlState::UNDEFINED_TABLE, format!("relation \"{name}\" does not exist"))
}

fn parser_options() -> ParserOptions {
    let defaults = SqlParserOptions::default();
    ParserOptions {
        parse_float_as_decimal: true,
        enable_ident_normalization: true,
        support_varchar_with_length: true,
        enable_options_value_normalization: defaults.enable_options_value_normalization,
        collect_spans: false,
        map_string_types_to_utf8view: false,
        default_null_ordering: NullOrdering::NullsMax,
    }
}

/// DataFusion ignores FOR UPDATE and FOR SHARE; a client that asks relies on them.
fn refuse_locks(query: &ast::Query) -> Result<(), SqlError> {
    use std::ops::ControlFlow;
    struct Locks;
    impl ast::Visitor for Locks {
        type Break = String;
        fn pre_visit_query(&mut self, query: &ast::Query) -> ControlFlow<String> {
            match query.locks.first() {
                Some(lock) => ControlFlow::Break(lock.to_string()),
                None => ControlFlow::Continue(()),
            }
        }
    }
    match ast::Visit::visit(query, &mut Locks) {
        ControlFlow::Break(lock) => Err(SqlError::unsupported(format!("{lock} is not supported"))
            .detail("Row locks in a subquery are not supported.")
            .hint("Put the clause at the end of the whole SELECT.")),
        ControlFlow::Continue(()) => Ok(()),
    }
}

impl ContextProvider for Scope {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        self.resolve(&name).map(provider_as_source).map_err(external)
    }

    fn get_table_function_source(
        &self,
        name: &str,
        args: Vec<Expr>,
    ) -> Result<Arc<dyn TableSource>> {
        let name = name.strip_prefix("pg_catalog.").unwrap_or(name);
        let Some(function) = self.state.table_functions().get(name) else {
            let message = format!("function {name} does not exist");
            return Err(external(SqlError::new(SqlState::UNDEFINED_FUNCTION, message)));
        };
        let context = SimplifyContext::builder()
            .with_config_options(Arc::clone(self.state.config_options()))
            .with_query_execution_start_time(
                self.state.execution_props().query_execution_start_time,
            )
            .build();
        let simplifier = ExprSimplifier::new(context);
        let schema = DFSchema::empty();
        let args: Result<Vec<_>> = args
            .into_iter()
            .map(|arg| simplifier.simplify(simplifier.coerce(arg, &schema)?))
            .collect();
        let args = args?;
        let arguments = TableFunctionArgs::new(&args, &self.state);
        Ok(provider_as_source(function.create_table_provider_with_args(arguments)?))
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> Result<Arc<dyn TableSource>> {
        Ok(provider_as_source(Arc::new(CteWorkTable::new(name, schema))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.planners
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::new(PgTypePlanner))
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        let name = name.strip_prefix("pg_catalog.").unwrap_or(name);
        self.state.scalar_functions().get(name).cloned()
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.state.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        let name = name.strip_prefix("pg_catalog.").unwrap_or(name);
        self.state.aggregate_functions().get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        let name = name.strip_prefix("pg_catalog.").unwrap_or(name);
        self.state.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.state.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        self.state.scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.state.higher_order_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.state.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.state.window_functions().keys().cloned().collect()
    }
}
