//! Reads at a timestamp in the past, at the nearest replica that has everything up to it
//! (`crate::safe_time`).

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::try_join_all;
use meridian_replication::TabletDescriptor;
use meridian_storage::{KeyRange, NodeId, TabletId};
use meridian_truetime::{Moment, Timestamp};

use super::Effect;
use crate::command::{ReadAt, Request, Row, ScanRequest, ScanResult, Stale};
use crate::directory::DirectoryRow;
use crate::error::TxnError;
use crate::node::Node;
use crate::tablet::{SOON, TabletRead};

/// A node that takes longer to say that it can't is asked last for a while.
const SILENT: Duration = Duration::from_secs(1);
const AVOIDED: Duration = Duration::from_secs(10);

/// Nodes that were asked in vain, until when they are asked last.
#[derive(Debug, Default)]
pub(crate) struct Silent(Mutex<BTreeMap<NodeId, Moment>>);

impl Silent {
    fn note(&self, node: NodeId, until: Moment) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node, until);
    }

    fn is_silent(&self, node: NodeId, now: Moment) -> bool {
        let silent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        silent.get(&node).is_some_and(|until| *until > now)
    }
}

impl Node {
    /// A view of `range` of a tablet at a timestamp in the past, from this node's replica, whether it
    /// leads or not: for services that run beside it.
    ///
    /// # Errors
    /// [`TxnError::TooFresh`] when the replica doesn't have everything up to that timestamp yet;
    /// [`TxnError::TooOld`] when it may have something no more.
    pub async fn open_stale(
        &self,
        tablet: TabletId,
        at: Timestamp,
        range: &KeyRange,
    ) -> Result<TabletRead, TxnError> {
        let tablet = self.tablet(tablet)?;
        if at.since(self.clock().now().latest) > SOON {
            return Err(TxnError::in_the_future());
        }
        let safe = self.safe_time_here(&tablet);
        if at > safe && tablet.replica().leads().is_some() {
            // What isn't closed yet, a leader promises to this reader alone.
            return tablet.read(ReadAt::Exact(at), range).await;
        }
        tablet.read_closed(at, range, safe).await
    }

    /// Up to which timestamp this node's replica of a tablet serves reads by itself; `None` if there
    /// is no replica here.
    #[must_use]
    pub fn safe_time(&self, tablet: TabletId) -> Option<Timestamp> {
        Some(self.safe_time_here(&self.tablet(tablet).ok()?))
    }

    /// The same, and for a leader as of now.
    pub(crate) fn fresh_safe_time(&self, tablet: TabletId) -> Result<Timestamp, TxnError> {
        let tablet = self.tablet(tablet)?;
        let closed = tablet.close(self.clock().now().earliest.prev());
        let closed = closed.map_or(Timestamp::MIN, |(_, closed)| closed.at);
        let safe = self.safe_time_here(&tablet).max(closed);
        if safe > Timestamp::MIN {
            return Ok(safe);
        }
        let leader = tablet.replica().probable_leader();
        Err(TxnError::TooFresh { tablet: tablet.id(), safe, leader })
    }

    /// Reads rows of one tablet by their keys, as they were at a timestamp; `None` for those that
    /// didn't exist. The nearest replica that can answers.
    ///
    /// # Errors
    /// [`TxnError`].
    pub async fn get_stale(
        &self,
        tablet: TabletId,
        keys: Vec<Vec<u8>>,
        at: Timestamp,
    ) -> Result<Vec<Option<Row>>, TxnError> {
        let request = Request::Stale(Stale::Get { tablet, keys, at });
        let attempt = |node| self.ask(node, tablet, request.clone(), Effect::Repeatable);
        self.at_nearest(tablet, attempt).await
    }

    /// Reads rows of a range of one tablet; as they were at `scan.at`, if that is
    /// [`ReadAt::Exact`], at the nearest replica that can.
    ///
    /// # Errors
    /// [`TxnError`].
    pub async fn scan_stale(
        &self,
        tablet: TabletId,
        scan: ScanRequest,
    ) -> Result<ScanResult, TxnError> {
        let ReadAt::Exact(_) = scan.at else { return self.scan(tablet, scan).await };
        let request = Request::Stale(Stale::Scan { tablet, scan });
        let attempt = |node| self.ask(node, tablet, request.clone(), Effect::Repeatable);
        self.at_nearest(tablet, attempt).await
    }

    /// The highest timestamp at which the nearest replicas of all of these tablets can serve reads
    /// now.
    ///
    /// # Errors
    /// [`TxnError`].
    pub async fn safe_time_near(&self, tablets: &[TabletId]) -> Result<Timestamp, TxnError> {
        let safe = tablets.iter().map(|tablet| {
            let request = Request::Stale(Stale::SafeTime { tablet: *tablet });
            let ask = move |node| self.ask(node, *tablet, request.clone(), Effect::Repeatable);
            self.at_nearest(*tablet, ask)
        });
        let safe: Vec<Timestamp> = try_join_all(safe).await?;
        Ok(safe.into_iter().min().unwrap_or_else(|| self.clock().now().earliest.prev()))
    }

    /// Makes `attempt` at replicas of a tablet, those that vote and those that don't, the nearest
    /// first, until one succeeds; in the end where [`Node::at_leader`] finds its leader.
    /// [`TxnError::TooFresh`] and what `at_leader` takes for "elsewhere" send it on; any other error
    /// ends it.
    ///
    /// # Errors
    /// The last attempt's error.
    pub async fn at_nearest<T, F, A>(&self, tablet: TabletId, mut attempt: A) -> Result<T, TxnError>
    where
        F: Future<Output = Result<T, TxnError>> + Send,
        A: FnMut(NodeId) -> F + Send,
    {
        for node in self.nearest(&self.replicas_of(tablet).await?) {
            let began = self.env().moment();
            match attempt(node).await {
                Ok(done) => return Ok(done),
                Err(TxnError::Moved { tablet, known }) => {
                    self.directory().learn(known.iter().cloned().map(DirectoryRow::Live));
                    return Err(TxnError::Moved { tablet, known });
                }
                Err(
                    TxnError::TooFresh { .. }
                    | TxnError::NotLeader { .. }
                    | TxnError::Unavailable { .. }
                    | TxnError::NoSuchTablet { .. },
                ) => {}
                Err(error) => return Err(error),
            }
            let now = self.env().moment();
            if node != self.id() && now.since(began) > SILENT {
                self.silent().note(node, now.plus(AVOIDED));
            }
        }
        self.at_leader(tablet, attempt).await
    }

    /// A tablet's replicas, the nearest first.
    fn nearest(&self, descriptor: &TabletDescriptor) -> Vec<NodeId> {
        let now = self.env().moment();
        let mut replicas: Vec<NodeId> = descriptor.replicas().collect();
        replicas.sort_by_key(|node| {
            let member = self.members().iter().find(|member| member.id == *node);
            let distance = member.map_or(Duration::MAX, |member| member.round_trip);
            (self.silent().is_silent(*node, now), Reverse(*node == self.id()), distance, *node)
        });
        replicas
    }
}
