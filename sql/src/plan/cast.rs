//! Conversions between types as PostgreSQL makes them.
//!
//! Arrow converts numbers and the like as PostgreSQL does. Where text is on one side (and for
//! `varchar(n)`, which cuts), it doesn't, and the cast becomes a call of [`function`], which goes
//! through PostgreSQL's text forms.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue, internal_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    Cast, ColumnarValue, Expr, ExprSchemable, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility,
};

use super::literals::{external, literal};
use crate::error::SqlError;
use crate::types::{PgType, SessionFormat, TimeZone, assign};

const NAME: &str = "meridian_cast";

/// A cast of a fresh plan, as it will be carried out.
pub(crate) fn settle(
    inner: Expr,
    target: PgType,
    field: FieldRef,
    schema: &DFSchema,
    format: &SessionFormat,
) -> Result<Transformed<Expr>> {
    if let Expr::Literal(ScalarValue::Utf8(Some(text)), None) = &inner
        && !target.is_oid()
        && !target.is_array()
    {
        let value = explicit(text, target, format).map_err(external)?;
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
    let zone = Expr::Literal(ScalarValue::from(format.time_zone.name()), None);
    let arguments = vec![inner, named(from), named(target), zone];
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
    let signature = Signature::any(4, Volatility::Immutable);
    Arc::new(ScalarUDF::from(CastFunction { signature }))
}

/// A quoted literal under an explicit cast, which cuts what is too long.
fn explicit(text: &str, target: PgType, format: &SessionFormat) -> Result<ScalarValue, SqlError> {
    let value = ScalarValue::Utf8(Some(text.to_owned()));
    assign::cast(&value, PgType::Unknown, target, format)
}

/// `meridian_cast(value, 'from', 'to', 'zone')`: with the session's zone, so that a leader
/// elsewhere comes to the same result.
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
        let Some(ColumnarValue::Scalar(ScalarValue::Utf8(Some(zone)))) = args.args.get(3) else {
            return internal_err!("{NAME} needs a time zone");
        };
        let time_zone = TimeZone::parse(zone).map_err(external)?;
        let format = SessionFormat { time_zone };
        match args.args.first() {
            Some(ColumnarValue::Scalar(value)) => {
                let value = assign::cast(value, from, target, &format).map_err(external)?;
                Ok(ColumnarValue::Scalar(value))
            }
            Some(ColumnarValue::Array(array)) => {
                let array = assign::cast_array(array, from, target, &format).map_err(external)?;
                Ok(ColumnarValue::Array(array))
            }
            None => internal_err!("{NAME} without arguments"),
        }
    }
}
