//! Which relations a FROM names, and whose a column is.

use datafusion::sql::sqlparser::ast::{
    Expr, JoinOperator, ObjectNamePart, TableFactor, TableWithJoins,
};

use super::super::definition::{self, Definition};
use super::super::{information_schema, rows};
use super::fold;

/// The relations of a FROM, by the names under which columns are qualified.
#[derive(Default)]
pub(super) struct Scope {
    pub(super) tables: Vec<(String, Option<&'static Definition>)>,
}

impl Scope {
    pub(super) fn of(from: &[TableWithJoins]) -> Self {
        let mut scope = Self::default();
        for table in from {
            scope.add_joined(table);
        }
        scope
    }

    fn add_joined(&mut self, table: &TableWithJoins) {
        self.add(&table.relation);
        for join in &table.joins {
            self.add(&join.relation);
        }
    }

    pub(super) fn add(&mut self, factor: &TableFactor) {
        let (alias, definition) = match factor {
            TableFactor::NestedJoin { table_with_joins, .. } => {
                return self.add_joined(table_with_joins);
            }
            TableFactor::Table { name, alias, args, .. } => {
                let definition = definition_of(factor).filter(|_| args.is_none());
                let own = name.0.last().and_then(ObjectNamePart::as_ident).map(fold);
                (alias.as_ref().map(|alias| fold(&alias.name)).or(own), definition)
            }
            TableFactor::Derived { alias, .. }
            | TableFactor::TableFunction { alias, .. }
            | TableFactor::Function { alias, .. }
            | TableFactor::UNNEST { alias, .. } => {
                (alias.as_ref().map(|alias| fold(&alias.name)), None)
            }
            _ => (None, None),
        };
        self.tables.push((alias.unwrap_or_default(), definition));
    }

    fn has_alias(&self, name: &str) -> bool {
        self.tables.iter().any(|(alias, _)| alias == name)
    }

    fn has_column(&self, name: &str) -> bool {
        let mut definitions = self.tables.iter().filter_map(|(_, definition)| *definition);
        definitions.any(|found| found.columns.iter().any(|column| column.name == name))
    }

    pub(super) fn is_of_catalogs(&self) -> bool {
        !self.tables.is_empty() && self.tables.iter().all(|(_, definition)| definition.is_some())
    }

    pub(super) fn has_catalogs(&self) -> bool {
        self.tables.iter().any(|(_, definition)| definition.is_some())
    }

    /// Whether a column belongs here; nothing if the expression isn't a column.
    pub(super) fn owns(&self, expr: &Expr) -> Option<bool> {
        match expr {
            Expr::Identifier(name) => Some(self.has_column(&fold(name))),
            Expr::CompoundIdentifier(_) => Some(self.has_alias(&qualifier(expr)?)),
            _ => None,
        }
    }
}

/// The relation in a column's name: `t` in `t.c` and in `s.t.c`.
pub(super) fn qualifier(column: &Expr) -> Option<String> {
    match column {
        Expr::CompoundIdentifier(parts) => parts.iter().rev().nth(1).map(fold),
        _ => None,
    }
}

/// The system catalog that a table in a FROM is.
fn definition_of(factor: &TableFactor) -> Option<&'static Definition> {
    let TableFactor::Table { name, alias, .. } = factor else { return None };
    if alias.as_ref().is_some_and(|alias| !alias.columns.is_empty()) {
        return None;
    }
    let parts: Option<Vec<String>> = name.0.iter().map(|part| part.as_ident().map(fold)).collect();
    let (schema, name) = match parts?.as_slice() {
        [name] => ("pg_catalog".to_owned(), name.clone()),
        [schema, name] | [_, schema, name] => (schema.clone(), name.clone()),
        _ => return None,
    };
    definition::relations(&schema)?.get(name.as_str())
}

fn is_always_empty(definition: &Definition) -> bool {
    match definition.schema {
        "information_schema" => information_schema::of(definition.name).is_none(),
        _ => rows::of(definition.name).is_none(),
    }
}

/// Whether the FROM yields no row because it joins with a catalog that has none.
pub(super) fn yields_nothing(from: &[TableWithJoins]) -> bool {
    let empty = |factor: &TableFactor| definition_of(factor).is_some_and(is_always_empty);
    from.iter().any(|table| {
        let inner = |operator: &JoinOperator| {
            matches!(
                operator,
                JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_)
            )
        };
        let left = |operator: &JoinOperator| {
            matches!(operator, JoinOperator::Left(_) | JoinOperator::LeftOuter(_))
        };
        let keeps_left =
            table.joins.iter().all(|j| inner(&j.join_operator) || left(&j.join_operator));
        keeps_left
            && (empty(&table.relation)
                || table.joins.iter().any(|j| inner(&j.join_operator) && empty(&j.relation)))
    })
}
