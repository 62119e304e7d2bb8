//! One value of a catalog, and how columns of them become Arrow arrays and back.

use std::borrow::Cow;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float32Array, Int16Array, Int32Array, Int64Array,
    ListArray, StringArray, TimestampMicrosecondArray, UInt32Array, new_null_array,
};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ScalarValue;

/// A value of a catalog's column, or of an argument or result of one of its functions.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Null,
    Bool(bool),
    /// Every kind of number: object ids, integers, reals that are whole.
    Int(i64),
    Text(Cow<'static, str>),
    List(Vec<Cell>),
}

impl Cell {
    pub(super) fn text(text: impl Into<Cow<'static, str>>) -> Self {
        Self::Text(text.into())
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number, also out of text: an unknown literal in SQL is both.
    pub(super) fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Bool(value) => *value,
            Self::Text(text) => matches!(text.as_ref(), "t" | "true" | "on" | "yes" | "1"),
            _ => false,
        }
    }

    pub(super) fn as_oid(&self) -> Option<u32> {
        self.as_int().and_then(|number| u32::try_from(number).ok())
    }

    /// The value at `row` of an array.
    pub(super) fn of(array: &dyn Array, row: usize) -> Self {
        // An untyped NULL has no bits that say so.
        if array.is_null(row) || *array.data_type() == DataType::Null {
            return Self::Null;
        }
        if let Some(list) = array.as_list_opt::<i32>() {
            let items = list.value(row);
            return Self::List((0..items.len()).map(|item| Self::of(&items, item)).collect());
        }
        match ScalarValue::try_from_array(array, row) {
            Ok(ScalarValue::Boolean(Some(value))) => Self::Bool(value),
            Ok(value) if value.data_type().is_integer() => match value.cast_to(&DataType::Int64) {
                Ok(ScalarValue::Int64(Some(number))) => Self::Int(number),
                _ => Self::Null,
            },
            Ok(value) => Self::text(value.to_string()),
            Err(_) => Self::Null,
        }
    }
}

impl From<bool> for Cell {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i32> for Cell {
    fn from(value: i32) -> Self {
        Self::Int(value.into())
    }
}

impl From<u32> for Cell {
    fn from(value: u32) -> Self {
        Self::Int(value.into())
    }
}

/// A length or an ordinal.
impl From<usize> for Cell {
    fn from(value: usize) -> Self {
        Self::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<char> for Cell {
    fn from(value: char) -> Self {
        Self::text(value.to_string())
    }
}

impl From<&'static str> for Cell {
    fn from(value: &'static str) -> Self {
        Self::text(value)
    }
}

impl From<String> for Cell {
    fn from(value: String) -> Self {
        Self::text(value)
    }
}

impl From<&String> for Cell {
    fn from(value: &String) -> Self {
        Self::text(value.clone())
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl<T: Into<Cell>> FromIterator<T> for Cell {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self::List(items.into_iter().map(Into::into).collect())
    }
}

/// An array of that type; a cell that doesn't fit it becomes NULL.
pub(super) fn array<'a>(
    data_type: &DataType,
    cells: impl ExactSizeIterator<Item = &'a Cell>,
) -> ArrayRef {
    match data_type {
        DataType::Boolean => {
            let truth = |cell: &Cell| match cell {
                Cell::Bool(value) => Some(*value),
                _ => None,
            };
            Arc::new(cells.map(truth).collect::<BooleanArray>())
        }
        DataType::Int16 => Arc::new(numbers(cells).collect::<Int16Array>()),
        DataType::Int32 => Arc::new(numbers(cells).collect::<Int32Array>()),
        DataType::Int64 => Arc::new(numbers(cells).collect::<Int64Array>()),
        DataType::UInt32 => Arc::new(numbers(cells).collect::<UInt32Array>()),
        DataType::Float32 => {
            let reals = numbers::<i16>(cells).map(|number| number.map(f32::from));
            Arc::new(reals.collect::<Float32Array>())
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let micros: TimestampMicrosecondArray = numbers(cells).collect();
            Arc::new(micros.with_timezone_opt(zone.clone()))
        }
        DataType::List(item) => {
            let lists: Vec<&Cell> = cells.collect();
            let items_of = |cell: &&'a Cell| match cell {
                Cell::List(items) => items.as_slice(),
                _ => &[],
            };
            let offsets = OffsetBuffer::from_lengths(lists.iter().map(|list| items_of(list).len()));
            let items: Vec<&Cell> = lists.iter().flat_map(items_of).collect();
            let items = array(item.data_type(), items.into_iter());
            let valid = lists.iter().map(|list| matches!(list, Cell::List(_)));
            Arc::new(ListArray::new(item.clone(), offsets, items, Some(valid.collect())))
        }
        DataType::Utf8 => Arc::new(cells.map(Cell::as_str).collect::<StringArray>()),
        other => new_null_array(other, cells.len()),
    }
}

fn numbers<'a, T: TryFrom<i64>>(
    cells: impl Iterator<Item = &'a Cell>,
) -> impl Iterator<Item = Option<T>> {
    cells.map(|cell| match cell {
        Cell::Int(number) => T::try_from(*number).ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg_catalog::definition::pg_type;

    #[test]
    fn cells_survive_arrow() {
        let lists = [[1, 2].into_iter().collect(), Cell::Null, Cell::List(Vec::new())];
        for (type_name, cells) in [
            ("bool", vec![Cell::Bool(true), Cell::Null]),
            ("oid", vec![Cell::from(u32::MAX), Cell::Null]),
            ("int2", vec![Cell::Int(-1)]),
            ("text", vec![Cell::from(""), Cell::Null, Cell::from("x")]),
            ("int2vector", lists.to_vec()),
            ("oid[]", lists.to_vec()),
            ("aclitem[]", vec![["a=r/a"].into_iter().collect(), Cell::Null]),
        ] {
            let array = array(&pg_type(type_name).arrow_type(), cells.iter());
            let back: Vec<Cell> = (0..array.len()).map(|row| Cell::of(&array, row)).collect();
            assert_eq!(back, cells, "{type_name}");
        }
    }
}
