//! Which key ranges a filter can only be true in.
//!
//! Each conjunct `column op constant` on a column of the primary key narrows that column's
//! *domain*: a set of points or an interval, both over the encoded values, whose byte order is the
//! order of the values. The key's columns are then taken in order: as long as they are points, the
//! prefixes multiply (`a in (1, 2) and b = 3`); the first interval ends it (`a = 1 and b > 7`);
//! columns after it only filter. Behind the columns of the root's key comes the table's own id: with
//! all of those fixed, what is read are rows of this table alone; else the ranges also hold rows of
//! the tables that are interleaved with it, which the reader passes over. An OR that isn't about one column is expanded, and the ranges of
//! its branches are united.
//!
//! Ranges only narrow what is read. Every filter is still evaluated on every row, so a conjunct
//! that isn't understood here costs time, never correctness.

use std::collections::BTreeSet;
use std::ops::Bound;

use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::utils::{split_binary, split_conjunction};
use datafusion::logical_expr::{Between, BinaryExpr, Expr, Operator};
use meridian_storage::{KeyRange, prefix_end};

use crate::catalog::TableInfo;
use crate::codec::{self, KeyParts};

/// More ranges than this are read as one.
const MAX_RANGES: usize = 4_096;
/// How many branches of ORs are followed.
const MAX_BRANCHES: usize = 64;

/// The ranges of the table's keys in which all `filters` can be true, in order and disjoint.
pub(crate) fn key_ranges(table: &TableInfo, filters: &[Expr]) -> Vec<KeyRange> {
    let conjuncts: Vec<&Expr> = filters.iter().flat_map(split_conjunction).collect();
    let Ok(parts) = KeyParts::new(table) else {
        return vec![whole_table(table)];
    };
    let search = Search { table, parts };
    let mut budget = MAX_BRANCHES;
    merge(search.branch(&conjuncts, &mut budget))
}

/// The range of all keys of a table, and of all others of its root.
pub(crate) fn whole_table(table: &TableInfo) -> KeyRange {
    KeyRange::prefix(codec::key_prefix(table))
}

struct Search<'t> {
    table: &'t TableInfo,
    parts: KeyParts<'t>,
}

impl Search<'_> {
    fn branch(&self, conjuncts: &[&Expr], budget: &mut usize) -> Vec<KeyRange> {
        let mut domains = vec![Domain::All; self.table.primary_key.len()];
        let mut alternatives = None;
        for (position, conjunct) in conjuncts.iter().enumerate() {
            match self.constraint(conjunct) {
                Some((key_position, domain)) => domains[key_position].narrow(domain),
                None if is_false(conjunct) => return Vec::new(),
                None if alternatives.is_none() && is_or(conjunct) => alternatives = Some(position),
                None => {}
            }
        }
        if let Some(position) = alternatives {
            let branches = split_binary(conjuncts[position], Operator::Or);
            if branches.len() <= *budget {
                *budget -= branches.len();
                let mut ranges = Vec::new();
                for alternative in branches {
                    let mut with: Vec<&Expr> = conjuncts.to_vec();
                    with.splice(position..=position, split_conjunction(alternative));
                    ranges.extend(self.branch(&with, budget));
                }
                return ranges;
            }
        }
        self.compose(&domains)
    }

    /// The ranges of keys whose columns lie in their domains.
    fn compose(&self, domains: &[Domain]) -> Vec<KeyRange> {
        if domains.iter().any(Domain::is_empty) {
            return Vec::new();
        }
        let mut prefixes = vec![codec::key_prefix(self.table)];
        for (place, domain) in domains.iter().enumerate() {
            self.step(place, &mut prefixes);
            match domain {
                Domain::Points(points) if prefixes.len() * points.len() <= MAX_RANGES => {
                    prefixes = prefixes
                        .iter()
                        .flat_map(|prefix| points.iter().map(move |point| join(prefix, point)))
                        .collect();
                }
                narrowed => return prefixes.iter().map(|prefix| narrowed.below(prefix)).collect(),
            }
        }
        // Points all the way: exactly these keys.
        self.step(domains.len(), &mut prefixes);
        prefixes.into_iter().map(KeyRange::point).collect()
    }

    /// Appends what comes before the column at `place`.
    fn step(&self, place: usize, prefixes: &mut [Vec<u8>]) {
        let before = self.parts.before(place);
        for prefix in prefixes {
            prefix.extend_from_slice(&before);
        }
    }

    /// What a conjunct says of one column of the key, by the column's place in the key.
    fn constraint(&self, conjunct: &Expr) -> Option<(usize, Domain)> {
        match conjunct {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
                let (column, a) = self.constraint(left)?;
                let (other, b) = self.constraint(right)?;
                match (a, b) {
                    (Domain::Points(mut a), Domain::Points(b)) if column == other => {
                        a.extend(b);
                        Some((column, Domain::Points(a)))
                    }
                    _ => None,
                }
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let (column, op, value) = match (left.as_ref(), right.as_ref()) {
                    (Expr::Column(column), Expr::Literal(value, _)) => (column, *op, value),
                    (Expr::Literal(value, _), Expr::Column(column)) => (column, op.swap()?, value),
                    _ => return None,
                };
                let position = key_column(self.table, &column.name)?;
                Some((position, self.comparison(position, op, value)?))
            }
            Expr::InList(InList { expr, list, negated: false }) => {
                let Expr::Column(column) = expr.as_ref() else {
                    return None;
                };
                let position = key_column(self.table, &column.name)?;
                let mut points = BTreeSet::new();
                for item in list {
                    let Expr::Literal(value, _) = item else {
                        return None;
                    };
                    if !value.is_null() {
                        points.insert(self.parts.part(position, value)?);
                    }
                }
                Some((position, Domain::Points(points)))
            }
            Expr::Between(Between { expr, negated: false, low, high }) => {
                let (Expr::Column(column), Expr::Literal(low, _), Expr::Literal(high, _)) =
                    (expr.as_ref(), low.as_ref(), high.as_ref())
                else {
                    return None;
                };
                let position = key_column(self.table, &column.name)?;
                let mut domain = self.comparison(position, Operator::GtEq, low)?;
                domain.narrow(self.comparison(position, Operator::LtEq, high)?);
                Some((position, domain))
            }
            Expr::IsNull(expr) => match expr.as_ref() {
                Expr::Column(column) => {
                    let position = key_column(self.table, &column.name)?;
                    Some((position, Domain::Points(BTreeSet::new())))
                }
                _ => None,
            },
            Expr::Column(column) => {
                let position = key_column(self.table, &column.name)?;
                let truth = ScalarValue::Boolean(Some(true));
                Some((position, self.comparison(position, Operator::Eq, &truth)?))
            }
            Expr::Not(expr) => match expr.as_ref() {
                Expr::Column(column) => {
                    let position = key_column(self.table, &column.name)?;
                    let untruth = ScalarValue::Boolean(Some(false));
                    Some((position, self.comparison(position, Operator::Eq, &untruth)?))
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn comparison(&self, place: usize, op: Operator, value: &ScalarValue) -> Option<Domain> {
        use Bound::{Excluded, Included, Unbounded};
        if value.is_null() {
            // Comparing with NULL is never true.
            return matches!(
                op,
                Operator::Eq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq
            )
            .then(|| Domain::Points(BTreeSet::new()));
        }
        let value = self.parts.part(place, value)?;
        Some(match op {
            Operator::Eq | Operator::IsNotDistinctFrom => Domain::Points(BTreeSet::from([value])),
            Operator::Lt => Domain::Interval(Unbounded, Excluded(value)),
            Operator::LtEq => Domain::Interval(Unbounded, Included(value)),
            Operator::Gt => Domain::Interval(Excluded(value), Unbounded),
            Operator::GtEq => Domain::Interval(Included(value), Unbounded),
            _ => return None,
        })
    }
}

fn join(prefix: &[u8], suffix: &[u8]) -> Vec<u8> {
    [prefix, suffix].concat()
}

/// Ranges in order, those that touch united.
fn merge(mut ranges: Vec<KeyRange>) -> Vec<KeyRange> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by(|a, b| a.start.cmp(&b.start));
    let mut merged: Vec<KeyRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end.as_ref().is_none_or(|end| *end >= range.start) => {
                if let (Some(end), Some(other)) = (&last.end, &range.end) {
                    last.end = Some(end.max(other).clone());
                } else {
                    last.end = None;
                }
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// The encoded values that a column may have.
#[derive(Clone, Debug, PartialEq)]
enum Domain {
    All,
    Points(BTreeSet<Vec<u8>>),
    Interval(Bound<Vec<u8>>, Bound<Vec<u8>>),
}

impl Domain {
    fn is_empty(&self) -> bool {
        match self {
            Self::All => false,
            Self::Points(points) => points.is_empty(),
            Self::Interval(low, high) => match (low, high) {
                (Bound::Included(low), Bound::Included(high)) => low > high,
                (
                    Bound::Included(low) | Bound::Excluded(low),
                    Bound::Included(high) | Bound::Excluded(high),
                ) => low >= high,
                _ => false,
            },
        }
    }

    fn contains(&self, value: &Vec<u8>) -> bool {
        match self {
            Self::All => true,
            Self::Points(points) => points.contains(value),
            Self::Interval(low, high) => {
                (match low {
                    Bound::Included(low) => value >= low,
                    Bound::Excluded(low) => value > low,
                    Bound::Unbounded => true,
                }) && (match high {
                    Bound::Included(high) => value <= high,
                    Bound::Excluded(high) => value < high,
                    Bound::Unbounded => true,
                })
            }
        }
    }

    fn narrow(&mut self, other: Domain) {
        *self = match (std::mem::replace(self, Self::All), other) {
            (Self::All, other) | (other, Self::All) => other,
            (Self::Points(mut points), other) | (other, Self::Points(mut points)) => {
                points.retain(|point| other.contains(point));
                Self::Points(points)
            }
            (Self::Interval(low, high), Self::Interval(other_low, other_high)) => {
                Self::Interval(later(low, other_low), earlier(high, other_high))
            }
        };
    }

    /// The range of the keys that continue `prefix` with a value of the domain (for points, with
    /// any between the first and the last).
    fn below(&self, prefix: &[u8]) -> KeyRange {
        let whole = KeyRange::prefix(prefix.to_vec());
        let (low, high) = match self {
            Self::All => return whole,
            Self::Points(points) => match (points.first(), points.last()) {
                (Some(first), Some(last)) => {
                    (Bound::Included(first.clone()), Bound::Included(last.clone()))
                }
                _ => return whole,
            },
            Self::Interval(low, high) => (low.clone(), high.clone()),
        };
        let start = match low {
            Bound::Included(low) => join(prefix, &low),
            Bound::Excluded(low) => {
                prefix_end(&join(prefix, &low)).unwrap_or_else(|| prefix.to_vec())
            }
            Bound::Unbounded => whole.start,
        };
        let end = match high {
            Bound::Included(high) => prefix_end(&join(prefix, &high)),
            Bound::Excluded(high) => Some(join(prefix, &high)),
            Bound::Unbounded => whole.end,
        };
        KeyRange { start, end }
    }
}

fn later(a: Bound<Vec<u8>>, b: Bound<Vec<u8>>) -> Bound<Vec<u8>> {
    match (&a, &b) {
        (Bound::Unbounded, _) => b,
        (_, Bound::Unbounded) => a,
        (Bound::Included(x) | Bound::Excluded(x), Bound::Included(y) | Bound::Excluded(y)) => {
            match x.cmp(y) {
                std::cmp::Ordering::Less => b,
                std::cmp::Ordering::Greater => a,
                std::cmp::Ordering::Equal if matches!(a, Bound::Excluded(_)) => a,
                std::cmp::Ordering::Equal => b,
            }
        }
    }
}

fn earlier(a: Bound<Vec<u8>>, b: Bound<Vec<u8>>) -> Bound<Vec<u8>> {
    match (&a, &b) {
        (Bound::Unbounded, _) => b,
        (_, Bound::Unbounded) => a,
        (Bound::Included(x) | Bound::Excluded(x), Bound::Included(y) | Bound::Excluded(y)) => {
            match x.cmp(y) {
                std::cmp::Ordering::Less => a,
                std::cmp::Ordering::Greater => b,
                std::cmp::Ordering::Equal if matches!(a, Bound::Excluded(_)) => a,
                std::cmp::Ordering::Equal => b,
            }
        }
    }
}

/// The place of a column in the key.
fn key_column(table: &TableInfo, name: &str) -> Option<usize> {
    table.key_columns().position(|column| column.name == name)
}

fn is_or(expr: &Expr) -> bool {
    matches!(expr, Expr::BinaryExpr(BinaryExpr { op: Operator::Or, .. }))
}

fn is_false(expr: &Expr) -> bool {
    matches!(expr, Expr::Literal(ScalarValue::Boolean(Some(false) | None), _))
}
