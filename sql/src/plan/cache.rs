//! Plans that were made before.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::logical_expr::LogicalPlan;

/// What a plan depends on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PlanKey {
    /// The statement's text.
    pub(crate) sql: Arc<str>,
    /// The parameters' Arrow types and the settings that planning looks at, written out.
    pub(crate) context: String,
    /// The catalog's version.
    pub(crate) catalog: u64,
}

/// A plan with placeholders for its parameters.
#[derive(Clone, Debug)]
pub(crate) struct CachedPlan {
    pub(crate) plan: Arc<LogicalPlan>,
    /// Whether it was optimized: not if it calls a function like `now()`, which the optimizer
    /// replaces by its value.
    pub(crate) optimized: bool,
}

/// How many plans are kept.
const CAPACITY: usize = 512;
/// Statements longer than this are not kept: they are bulk inserts and the like.
const LONGEST: usize = 16 << 10;

/// The latest plans of all sessions of a node.
#[derive(Debug, Default)]
pub(crate) struct PlanCache(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    plans: BTreeMap<PlanKey, CachedPlan>,
    /// In the order in which they came.
    order: VecDeque<PlanKey>,
}

impl PlanCache {
    pub(crate) fn get(&self, key: &PlanKey) -> Option<CachedPlan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).plans.get(key).cloned()
    }

    pub(crate) fn put(&self, key: PlanKey, plan: CachedPlan) {
        if key.sql.len() > LONGEST {
            return;
        }
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.plans.insert(key.clone(), plan).is_none() {
            entries.order.push_back(key);
        }
        while entries.order.len() > CAPACITY {
            if let Some(oldest) = entries.order.pop_front() {
                entries.plans.remove(&oldest);
            }
        }
    }
}
