//! The end of a transaction, as its gateway brings it about (`crate::commit` has the rules).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use meridian_storage::TabletId;
use meridian_truetime::{EnvironmentExt, Timestamp};

use super::transaction::Transaction;
use super::{Effect, PATIENCE, PAUSE};
use crate::command::{Mutation, Request, TxnLock, WholeTxn, WriteRequest};
use crate::commit::{Anchor, Commit, CommitReport, Committed, Fate, Part, Phases, Prepare};
use crate::error::TxnError;
use crate::locks::Hold;

/// A coordinator decides nothing later than so long after the commit was asked for.
const EXPIRES: Duration = Duration::from_secs(10);

impl Transaction {
    /// Commits; the commit timestamp. It is [`Timestamp::MIN`] if nothing was written.
    ///
    /// # Errors
    /// [`TxnError::Unknown`] when it may have been committed; otherwise it was not, and
    /// [`TxnError::Conflict`] says that it is worth another attempt.
    pub async fn commit(&self) -> Result<Timestamp, TxnError> {
        let env = self.node.env();
        let began = env.moment();
        let committed = self.commit_all().await?;
        let travel = env.moment().since(began).saturating_sub(committed.phases.total()) / 2;
        let Committed { at, phases } = committed;
        let mut state = self.state();
        state.report.at = at;
        state.report.epsilon = self.node.clock().now().epsilon();
        (state.report.gateway, state.report.phases, state.report.notify) = (travel, phases, travel);
        Ok(at)
    }

    /// What its commit came to.
    #[must_use]
    pub fn report(&self) -> CommitReport {
        self.state().report
    }

    async fn commit_all(&self) -> Result<Committed, TxnError> {
        let writes = {
            let mut state = self.state();
            if std::mem::replace(&mut state.over, true) {
                return Err(TxnError::Conflict);
            }
            state.writes.take()
        };
        let held = self.held.granted();
        let mut parts: BTreeMap<TabletId, Vec<Mutation>> =
            held.keys().map(|tablet| (*tablet, Vec::new())).collect();
        for (key, mutation) in writes {
            let routed = self.node.tablet_of(&key).await;
            let tablet = match routed {
                Ok(descriptor) => descriptor.id,
                Err(error) => {
                    self.release(self.held.all());
                    return Err(error);
                }
            };
            parts.entry(tablet).or_default().push(mutation);
        }
        self.state().report.participants = parts.len();
        let concerned: BTreeSet<TabletId> = parts.keys().copied().collect();
        let writers = parts.values().filter(|mutations| !mutations.is_empty()).count();
        let outcome = match (parts.len(), writers) {
            (_, 0) => self.confirm(&held).await,
            (1, _) => self.commit_in_one(parts).await,
            _ => self.commit_in_many(&held, parts).await,
        };
        match &outcome {
            Ok(_) | Err(TxnError::Unknown { .. }) => {
                // Where it asked for locks and never heard of any. Whoever takes part in the commit
                // releases its own, and may be at it still.
                self.release(self.held.all().difference(&concerned).copied());
            }
            Err(_) => self.release(self.held.all()),
        }
        match outcome {
            // It was split or merged since.
            Err(TxnError::Moved { .. } | TxnError::NoSuchTablet { .. }) => Err(TxnError::Conflict),
            outcome => outcome,
        }
    }

    /// Ends it without effect.
    pub fn roll_back(&self) {
        if !std::mem::replace(&mut self.state().over, true) {
            self.release(self.held.all());
        }
    }

    /// Ends a transaction that has written nothing: all that it has read was so at one time, if its
    /// locks are all there still.
    async fn confirm(&self, held: &BTreeMap<TabletId, Hold>) -> Result<Committed, TxnError> {
        let floor = self.seen();
        let ends = held.iter().map(|(tablet, hold)| {
            let (txn, held) = (self.stamp.id, Some(*hold));
            let request = Request::End { tablet: *tablet, txn, held, floor };
            self.node.ask_leader::<()>(*tablet, request, Effect::Once)
        });
        for end in join_all(ends).await {
            if end.is_err() {
                return Err(TxnError::Conflict);
            }
        }
        Ok(Committed { at: Timestamp::MIN, phases: Phases::default() })
    }

    async fn commit_in_one(
        &self,
        parts: BTreeMap<TabletId, Vec<Mutation>>,
    ) -> Result<Committed, TxnError> {
        let Some((tablet, mutations)) = parts.into_iter().next() else {
            return Err(TxnError::Internal("a commit of nothing".to_owned()));
        };
        let (after, schema, wait) = {
            let state = self.state();
            (state.after, state.schema.clone().into_iter().collect(), state.wait)
        };
        let mut request = WriteRequest {
            tablet,
            schema,
            reads: crate::command::ReadSet::default(),
            mutations,
            after,
            txn: None,
        };
        let locking = self.last_locks(tablet, wait);
        loop {
            let TxnLock { stamp, held, wait, .. } = locking.lock();
            request.txn = Some(WholeTxn { stamp, held, protocol: self.protocol, wait });
            let request = Request::Write(request.clone());
            match self.node.ask_leader(tablet, request, Effect::Once).await {
                Err(error) if locking.goes_on(&error) => {}
                outcome => return outcome,
            }
        }
    }

    async fn commit_in_many(
        &self,
        held: &BTreeMap<TabletId, Hold>,
        parts: BTreeMap<TabletId, Vec<Mutation>>,
    ) -> Result<Committed, TxnError> {
        let node = &self.node;
        let expires = node.clock().now().latest.plus(EXPIRES);
        let writes = |part: &(&TabletId, &Vec<Mutation>)| !part.1.is_empty();
        // The nearest of those that write: the answer comes from there.
        let near = |tablet: TabletId| {
            let wanted = || node.directory().get(tablet).map(|known| known.preferred_leader);
            let leader = node.leader_hint(tablet).or_else(wanted);
            let known = node.members().iter().find(|member| Some(member.id) == leader);
            known.map_or(Duration::MAX, |member| {
                if member.id == node.id() { Duration::ZERO } else { member.round_trip }
            })
        };
        let coordinator = parts.iter().filter(writes).map(|(tablet, _)| *tablet);
        let Some(coordinator) = coordinator.min_by_key(|tablet| (near(*tablet), *tablet)) else {
            return Err(TxnError::Internal("a commit of nothing".to_owned()));
        };
        let anchor: Anchor = parts[&coordinator][0].key().to_vec();
        let participants: Vec<TabletId> =
            parts.keys().copied().filter(|tablet| *tablet != coordinator).collect();
        let (after, schema): (Timestamp, Vec<(u64, u64)>) = {
            let state = self.state();
            (state.after, state.schema.clone().into_iter().collect())
        };
        let mut parts: BTreeMap<TabletId, Part> = parts
            .into_iter()
            .map(|(tablet, mutations)| {
                let (held, schema) = (held.get(&tablet).copied(), schema.clone());
                (tablet, Part { tablet, txn: self.stamp, held, schema, mutations })
            })
            .collect();
        let Some(part) = parts.remove(&coordinator) else {
            return Err(TxnError::Internal("a coordinator of nothing".to_owned()));
        };
        let prepares = parts.into_iter().map(|(tablet, part)| {
            let prepare = Prepare { part, coordinator, anchor: anchor.clone() };
            async move {
                let request = Request::Prepare(prepare);
                let asked = node.ask_leader::<()>(tablet, request, Effect::Repeatable).await;
                if asked.is_err() {
                    // Nobody waits for it then.
                    let vote = Err(TxnError::Conflict);
                    let _ = node.send_vote(coordinator, self.stamp.id, tablet, vote).await;
                }
            }
        });
        let commit = Commit {
            part,
            anchor: anchor.clone(),
            participants,
            protocol: self.protocol,
            after,
            expires,
        };
        let commit = node.ask_leader(coordinator, Request::Commit(commit), Effect::Once);
        let prepares = std::pin::pin!(join_all(prepares));
        let commit = std::pin::pin!(commit);
        // The answer may come without all of them: when one refuses.
        let outcome = match futures::future::select(commit, prepares).await {
            futures::future::Either::Left((outcome, _)) => outcome,
            futures::future::Either::Right((_, commit)) => commit.await,
        };
        match outcome {
            Err(TxnError::Unknown { reason }) => self.learn(&anchor, reason).await,
            outcome => outcome,
        }
    }

    /// What became of it, if that can be learned.
    async fn learn(&self, anchor: &Anchor, reason: String) -> Result<Committed, TxnError> {
        let node = &self.node;
        let give_up = node.env().moment().plus(PATIENCE * 2);
        while node.env().moment() < give_up {
            match node.outcome_of(self.stamp.id, anchor).await {
                Ok(Fate::Committed(at)) => {
                    return Ok(Committed { at, phases: Phases::default() });
                }
                Ok(Fate::Aborted) => return Err(TxnError::Conflict),
                Ok(Fate::Pending) | Err(_) => node.env().sleep(PAUSE.1).await,
            }
        }
        Err(TxnError::Unknown { reason })
    }

    /// Gives the locks up that have not been voted on.
    fn release(&self, held: impl IntoIterator<Item = TabletId>) {
        for tablet in held {
            let (node, txn) = (Arc::clone(&self.node), self.stamp.id);
            self.node.env().spawn(async move {
                let floor = Timestamp::MIN;
                let request = Request::End { tablet, txn, held: None, floor };
                let _ = node.ask_leader::<()>(tablet, request, Effect::Repeatable).await;
            });
        }
    }
}
