//! PostgreSQL's functions over the catalogs and the session, one row at a time: they are called on
//! catalogs of a few hundred rows.

#[allow(clippy::unnecessary_wraps, reason = "every function has the one shape that they share")]
mod library;
#[allow(clippy::unnecessary_wraps, reason = "as above")]
mod names;
#[allow(clippy::unnecessary_wraps, reason = "as above")]
mod text;

pub(crate) use names::identifiers;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::RangeInclusive;
use std::sync::Arc;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    TypeSignature, Volatility,
};

use super::cell::{self, Cell};
use super::world::World;
use crate::error::SqlError;
use crate::types::PgType;

type Outcome = Result<Cell, SqlError>;
/// What a function does, given as many arguments as it has asked for.
type Body = fn(&World, &[Cell]) -> Outcome;

/// A function as it is written down in the library.
#[derive(Clone, Debug)]
struct Function {
    name: &'static str,
    /// How many arguments it takes.
    arity: RangeInclusive<usize>,
    returns: PgType,
    /// NULL in any argument makes it answer NULL, without being called.
    strict: bool,
    volatility: Volatility,
    body: Body,
}

/// Every function, over this world.
pub(super) fn all(world: &Arc<World>) -> Vec<ScalarUDF> {
    let bound = |function| ScalarUDF::from(Bound::new(function, Arc::clone(world)));
    library::all().into_iter().map(bound).collect()
}

/// A function with the world that it speaks of.
struct Bound {
    function: Function,
    world: Arc<World>,
    signature: Signature,
}

impl Bound {
    fn new(function: Function, world: Arc<World>) -> Self {
        let of = |count| match count {
            0 => TypeSignature::Nullary,
            count => TypeSignature::Any(count),
        };
        let arities = function.arity.clone().map(of).collect();
        let signature = Signature::one_of(arities, function.volatility);
        Self { function, world, signature }
    }
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound").field("function", &self.function.name).finish_non_exhaustive()
    }
}

impl PartialEq for Bound {
    fn eq(&self, other: &Self) -> bool {
        self.function.name == other.function.name && Arc::ptr_eq(&self.world, &other.world)
    }
}

impl Eq for Bound {}

impl Hash for Bound {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.name.hash(state);
    }
}

impl ScalarUDFImpl for Bound {
    fn name(&self) -> &str {
        self.function.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.function.returns.arrow_type())
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(Arc::new(self.function.returns.field(self.function.name, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_scalar = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if is_scalar { 1 } else { args.number_rows };
        let columns: Vec<ArrayRef> =
            args.args.into_iter().map(|arg| arg.into_array(rows)).collect::<Result<_>>()?;
        let mut results = Vec::with_capacity(rows);
        for row in 0..rows {
            let cells: Vec<Cell> = columns.iter().map(|column| Cell::of(column, row)).collect();
            let result = if self.function.strict && cells.contains(&Cell::Null) {
                Cell::Null
            } else {
                let result = (self.function.body)(&self.world, &cells);
                result.map_err(|error| DataFusionError::External(Box::new(error)))?
            };
            results.push(result);
        }
        let array = cell::array(&self.function.returns.arrow_type(), results.iter());
        if is_scalar {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?));
        }
        Ok(ColumnarValue::Array(array))
    }
}
