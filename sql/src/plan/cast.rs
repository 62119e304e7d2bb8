//! Conversions between types as PostgreSQL makes them.
//!
//! Arrow converts numbers and the like as PostgreSQL does. Where text is on one side (and for
//! `varchar(n)`, which cuts), it doesn't, and the cast becomes a call of [`function`], which goes
//! through PostgreSQL's text forms.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue, internal_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    Cast, ColumnarValue, Expr, ExprSchemable, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility,
};

use super::literals::{external, literal};
use crate::catalog::ColumnInfo;
use crate::error::SqlError;
use crate::types::PgType;

const NAME: &str = "meridian_cast";

/// A quoted literal as a value of a type.
///
/// # Errors
/// `22P02` and its kin, as PostgreSQL's input functions.
pub(crate) fn parse(target: PgType, text: &str) -> Result<ScalarValue, SqlError> {
    let value = ScalarValue::Utf8(Some(text.to_owned()));
    value.cast_to(&target.arrow_type()).map_err(|e| super::errors::sql_error(&e))
}

/// A quoted literal as a value for a column.
///
/// # Errors
/// As [`parse`], and `22001` where it is too long.
pub(crate) fn parse_for(column: &ColumnInfo, text: &str) -> Result<ScalarValue, SqlError> {
    let value = parse(column.pg_type, text)?;
    assign(&value, column.pg_type, column)
}

/// A value as one of the column that it is stored in.
///
/// # Errors
/// `42804` where there is no such conversion, `22003` and `22001` where the value doesn't fit.
pub(crate) fn assign(
    value: &ScalarValue,
    _from: PgType,
    column: &ColumnInfo,
) -> Result<ScalarValue, SqlError> {
    let target = column.pg_type.arrow_type();
    value.cast_to(&target).map_err(|e| super::errors::sql_error(&e))
}

/// Converts explicitly: `value::target`.
fn convert(value: &ScalarValue, _from: PgType, target: PgType) -> Result<ScalarValue, SqlError> {
    value.cast_to(&target.arrow_type()).map_err(|e| super::errors::sql_error(&e))
}

/// A cast of a fresh plan, as it will be carried out.
pub(crate) fn settle(
    inner: Expr,
    target: PgType,
    field: FieldRef,
    schema: &DFSchema,
) -> Result<Transformed<Expr>> {
    if let Expr::Literal(ScalarValue::Utf8(Some(text)), None) = &inner
        && !target.is_oid()
        && !target.is_array()
    {
        let value = parse(target, text).map_err(external)?;
        return Ok(Transformed::yes(literal(value, target)));
    }
    let from = match &inner {
        Expr::Literal(ScalarValue::Null, _) => None,
        inner => Some(PgType::of_field(&inner.to_field(schema)?.1)),
    };
    let Some(from) = from else {
        return Ok(Transformed::no(Expr::Cast(Cast { expr: Box::new(inner), field })));
    };
    // A number without a declared size keeps the size that it has.
    if from == PgType::UnboundedNumeric && target == PgType::UnboundedNumeric {
        return Ok(Transformed::yes(inner));
    }
    if !needs_text(from, target) {
        return Ok(Transformed::no(Expr::Cast(Cast { expr: Box::new(inner), field })));
    }
    let arguments = vec![inner, named(from), named(target)];
    let call = ScalarFunction::new_udf(function(), arguments);
    Ok(Transformed::yes(Expr::ScalarFunction(call)))
}

fn named(pg_type: PgType) -> Expr {
    Expr::Literal(ScalarValue::Utf8(Some(pg_type.to_string())), None)
}

/// Whether Arrow's own conversion differs from PostgreSQL's.
fn needs_text(from: PgType, target: PgType) -> bool {
    if target.is_oid() || from.is_oid() || target.is_array() || from.is_array() {
        return false;
    }
    let cuts = matches!(target, PgType::Varchar(Some(_)) | PgType::Char(_));
    let rounds = matches!(target, PgType::Int2 | PgType::Int4 | PgType::Int8)
        && matches!(
            from,
            PgType::Float4 | PgType::Float8 | PgType::Numeric { .. } | PgType::UnboundedNumeric
        );
    cuts || rounds
        || (from.is_string() != target.is_string())
        || from == PgType::Jsonb
        || target == PgType::Jsonb
}

/// The function that casts.
pub(crate) fn function() -> Arc<ScalarUDF> {
    let signature = Signature::any(3, Volatility::Immutable);
    Arc::new(ScalarUDF::from(CastFunction { signature }))
}

/// `meridian_cast(value, 'from', 'to')`
#[derive(Debug, PartialEq, Eq, Hash)]
struct CastFunction {
    signature: Signature,
}

fn type_argument(value: Option<&ScalarValue>) -> Result<PgType> {
    match value {
        Some(ScalarValue::Utf8(Some(name))) => PgType::from_text(name).map_err(external),
        _ => internal_err!("{NAME} needs the names of two types"),
    }
}

impl ScalarUDFImpl for CastFunction {
    fn name(&self) -> &'static str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        internal_err!("{NAME} answers by its arguments")
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let target = type_argument(args.scalar_arguments.get(2).copied().flatten())?;
        Ok(Arc::new(target.field(NAME, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let scalar = |position: usize| match args.args.get(position) {
            Some(ColumnarValue::Scalar(value)) => type_argument(Some(value)),
            _ => internal_err!("{NAME} needs the names of two types"),
        };
        let (from, target) = (scalar(1)?, scalar(2)?);
        match args.args.first() {
            Some(ColumnarValue::Scalar(value)) => {
                let value = convert(value, from, target).map_err(external)?;
                Ok(ColumnarValue::Scalar(value))
            }
            Some(ColumnarValue::Array(array)) => {
                Ok(ColumnarValue::Array(convert_array(array, from, target)?))
            }
            None => internal_err!("{NAME} without arguments"),
        }
    }
}

fn convert_array(array: &ArrayRef, from: PgType, target: PgType) -> Result<ArrayRef> {
    if array.is_empty() {
        return Ok(datafusion::arrow::array::new_empty_array(&target.arrow_type()));
    }
    let values: Result<Vec<_>> = (0..array.len())
        .map(|row| {
            let value = ScalarValue::try_from_array(array, row)?;
            convert(&value, from, target).map_err(external)
        })
        .collect();
    ScalarValue::iter_to_array(values?)
}
