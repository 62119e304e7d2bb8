//! The functions of the schema `meridian`: their names, parameters and results.
//!
//! They change the cluster, so nothing here carries them out: a session recognizes a statement that
//! is a call of one (`session::calls`), and PostgreSQL's catalogs list them.

use std::fmt;

use super::SCHEMA;
use crate::types::{BaseType, PgType};

/// A function. There may be several of one name, with different parameters.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) name: &'static str,
    pub(crate) call: Call,
    /// Those that must be given come first.
    pub(crate) parameters: &'static [Parameter],
    pub(crate) returns: Returns,
}

/// What a function does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    StopNode,
    StartNode,
    PauseNode,
    ResumeNode,
    Partition,
    Heal,
    SetLatency,
    ResetLatency,
    SetClock,
    Split,
    Merge,
    Place,
    TransferLeader,
    MoveReplica,
}

/// What a function answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Returns {
    /// Whether anything changed.
    Changed,
    Tablet,
    /// A row for each.
    Tablets,
}

impl Returns {
    pub(crate) const fn pg_type(self) -> PgType {
        match self {
            Self::Changed => PgType::Bool,
            Self::Tablet | Self::Tablets => PgType::Int8,
        }
    }

    pub(crate) const fn is_set(self) -> bool {
        matches!(self, Self::Tablets)
    }
}

impl fmt::Display for Returns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = if self.is_set() { "SETOF " } else { "" };
        write!(f, "{set}{}", self.pg_type().display_name())
    }
}

#[derive(Debug)]
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// What stands for it where it isn't given, if it needn't be.
    pub(crate) default: Option<&'static str>,
}

/// What a parameter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Node,
    Tablet,
    /// A node, or all nodes of a region.
    Place,
    Text,
    Texts,
    Int,
    Float,
    Bool,
    Duration,
    /// A table's name.
    Table,
    /// The first columns of a table's key, together: one value or a row of several.
    Key,
    /// The first columns of a table's key, one by one. Only the last parameter is of this kind.
    KeyColumns,
}

impl Kind {
    /// The type of a value for it; `None` where the table decides.
    pub(crate) const fn pg_type(self) -> Option<PgType> {
        Some(match self {
            Self::Node | Self::Tablet => PgType::Int8,
            Self::Place | Self::Text | Self::Table => PgType::Text,
            Self::Texts => PgType::Array(BaseType::Text),
            Self::Int => PgType::Int4,
            Self::Float => PgType::Float8,
            Self::Bool => PgType::Bool,
            Self::Duration => PgType::Interval,
            Self::Key | Self::KeyColumns => return None,
        })
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == Kind::KeyColumns {
            write!(f, "VARIADIC ")?;
        }
        write!(f, "{} ", self.name)?;
        match self.kind.pg_type() {
            Some(pg_type) => write!(f, "{}", pg_type.display_name())?,
            None => write!(f, "\"any\"")?,
        }
        match self.default {
            Some(default) => write!(f, " DEFAULT {default}"),
            None => Ok(()),
        }
    }
}

impl Function {
    /// Every function of that name.
    pub(crate) fn named(name: &str) -> impl Iterator<Item = &'static Self> {
        FUNCTIONS.iter().filter(move |function| function.name == name)
    }

    /// As `\df` shows them: `node bigint, pause interval DEFAULT NULL`.
    pub(crate) fn arguments(&self) -> String {
        let parameters: Vec<_> = self.parameters.iter().map(ToString::to_string).collect();
        parameters.join(", ")
    }
}

/// The signature.
impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEMA}.{}({})", self.name, self.arguments())
    }
}

const fn needed(name: &'static str, kind: Kind) -> Parameter {
    Parameter { name, kind, default: None }
}

const fn optional(name: &'static str, kind: Kind) -> Parameter {
    Parameter { name, kind, default: Some("NULL") }
}

const fn changes(name: &'static str, call: Call, parameters: &'static [Parameter]) -> Function {
    Function { name, call, parameters, returns: Returns::Changed }
}

const NODE: Parameter = needed("node", Kind::Node);
const TABLET: Parameter = needed("tablet", Kind::Tablet);
const TABLE: Parameter = needed("table_name", Kind::Table);
const A: Parameter = needed("a", Kind::Place);
const B: Parameter = needed("b", Kind::Place);

/// All of them, by name.
pub(crate) const FUNCTIONS: &[Function] = &[
    changes("heal", Call::Heal, &[]),
    changes("heal", Call::Heal, &[A, B]),
    Function { name: "merge", call: Call::Merge, parameters: &[TABLET], returns: Returns::Tablet },
    changes(
        "move_replica",
        Call::MoveReplica,
        &[TABLET, needed("from_node", Kind::Node), needed("to_node", Kind::Node)],
    ),
    changes(
        "partition",
        Call::Partition,
        &[A, B, Parameter { name: "both", kind: Kind::Bool, default: Some("true") }],
    ),
    changes("pause_node", Call::PauseNode, &[NODE, optional("pause", Kind::Duration)]),
    Function {
        name: "place",
        call: Call::Place,
        parameters: &[
            TABLE,
            optional("leader_region", Kind::Text),
            optional("voters", Kind::Int),
            optional("regions", Kind::Texts),
            optional("read_only", Kind::Texts),
            optional("from_key", Kind::Key),
            optional("to_key", Kind::Key),
        ],
        returns: Returns::Tablets,
    },
    changes("reset_latency", Call::ResetLatency, &[]),
    changes("reset_latency", Call::ResetLatency, &[A, B]),
    changes("resume_node", Call::ResumeNode, &[NODE]),
    changes(
        "set_clock",
        Call::SetClock,
        &[
            NODE,
            optional("epsilon", Kind::Duration),
            optional("offset", Kind::Duration),
            optional("drift_ppm", Kind::Float),
        ],
    ),
    changes(
        "set_latency",
        Call::SetLatency,
        &[
            A,
            B,
            optional("rtt", Kind::Duration),
            optional("jitter", Kind::Duration),
            optional("loss", Kind::Float),
        ],
    ),
    Function {
        name: "split",
        call: Call::Split,
        parameters: &[TABLE, needed("key", Kind::KeyColumns)],
        returns: Returns::Tablet,
    },
    changes("start_node", Call::StartNode, &[NODE]),
    changes("stop_node", Call::StopNode, &[NODE]),
    changes("transfer_leader", Call::TransferLeader, &[TABLET, NODE]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_sorted_and_say_how_they_are_called() {
        assert!(FUNCTIONS.is_sorted_by_key(|function| function.name));
        for function in FUNCTIONS {
            assert!(function.parameters.is_sorted_by_key(|p| p.default.is_some()), "{function}");
            let last = function.parameters.len().saturating_sub(1);
            let variadic = function.parameters.iter().position(|p| p.kind == Kind::KeyColumns);
            assert!(variadic.is_none_or(|at| at == last), "{function}");
        }
        let signatures = |name| Function::named(name).map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(signatures("heal"), ["meridian.heal()", "meridian.heal(a text, b text)"]);
        assert_eq!(signatures("split"), ["meridian.split(table_name text, VARIADIC key \"any\")"]);
        assert_eq!(
            signatures("pause_node"),
            ["meridian.pause_node(node bigint, pause interval DEFAULT NULL)"]
        );
        assert_eq!(
            Function::named("place").next().expect("it is").returns.to_string(),
            "SETOF bigint"
        );
    }
}
