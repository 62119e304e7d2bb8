//! Small differences between PostgreSQL's SQL and DataFusion's, settled in the parsed statement.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Ident, ObjectNamePart, Query, TableAlias, TableAliasColumnDef, TableFactor, VisitMut,
    VisitorMut,
};

/// Functions whose one column is named after them, or after their alias.
const SERIES: [&str; 2] = ["generate_series", "range"];

/// Rewrites a query in place.
pub(crate) fn rewrite(query: &mut Query) {
    let _: ControlFlow<()> = query.visit(&mut Series);
}

/// `generate_series(1, 3) AS g` has a column `g`.
struct Series;

impl VisitorMut for Series {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        let (TableFactor::Table { name, alias, args: Some(_), .. }
        | TableFactor::Function { name, alias, .. }) = factor
        else {
            return ControlFlow::Continue(());
        };
        let Some(ObjectNamePart::Identifier(function)) = name.0.last() else {
            return ControlFlow::Continue(());
        };
        if !SERIES.iter().any(|series| function.value.eq_ignore_ascii_case(series)) {
            return ControlFlow::Continue(());
        }
        let alias = alias.get_or_insert_with(|| TableAlias {
            explicit: true,
            name: Ident::new(function.value.to_lowercase()),
            columns: Vec::new(),
            at: None,
        });
        if alias.columns.is_empty() {
            let name = alias.name.clone();
            alias.columns.push(TableAliasColumnDef { name, data_type: None });
        }
        ControlFlow::Continue(())
    }
}
