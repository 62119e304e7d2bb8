//! `now()` and its kin, which answer the statement's timestamp, not the machine's clock.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};

use crate::types::PgType;

/// All of them.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let function = |name: &'static str, aliases: &[&str], answers: PgType| {
        Arc::new(ScalarUDF::from(ClockFunction {
            name,
            aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
            answers,
            signature: Signature::nullary(Volatility::Stable),
        }))
    };
    let instants =
        ["current_timestamp", "transaction_timestamp", "statement_timestamp", "clock_timestamp"];
    vec![
        function("now", &instants, PgType::Timestamptz),
        function("localtimestamp", &[], PgType::Timestamp),
        function("current_date", &["today"], PgType::Date),
        function("localtime", &["current_time"], PgType::Time),
    ]
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ClockFunction {
    name: &'static str,
    aliases: Vec<String>,
    answers: PgType,
    signature: Signature,
}

impl ScalarUDFImpl for ClockFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.answers.arrow_type())
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(Arc::new(Field::new(self.name, self.answers.arrow_type(), false)))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        internal_err!("{}() is answered while planning", self.name)
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        let Some(now) = info.query_execution_start_time() else {
            return Ok(ExprSimplifyResult::Original(args));
        };
        let micros = now.timestamp_micros();
        let zone = info.config_options().execution.time_zone.clone();
        let offset = zone.and_then(|zone| crate::session::zone_offset_micros(&zone, micros));
        let local = micros + offset.unwrap_or(0);
        let value = match self.answers {
            PgType::Timestamptz => {
                ScalarValue::TimestampMicrosecond(Some(micros), Some(Arc::from("UTC")))
            }
            PgType::Timestamp => ScalarValue::TimestampMicrosecond(Some(local), None),
            PgType::Date => {
                ScalarValue::Date32(i32::try_from(local.div_euclid(86_400_000_000)).ok())
            }
            _ => ScalarValue::Time64Microsecond(Some(local.rem_euclid(86_400_000_000))),
        };
        Ok(ExprSimplifyResult::Simplified(Expr::Literal(value, None)))
    }
}
