//! What a node does for transactions beside running them: it tells tablets that its own live, and looks
//! after those that concern the tablets that it leads.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use meridian_storage::TabletId;
use meridian_truetime::{EnvironmentExt, Timestamp};

use super::Effect;
use crate::command::Request;
use crate::commit::{Anchor, CommitProtocol, Decided, Fate, Vote};
use crate::error::TxnError;
use crate::locks::TxnId;
use crate::node::Node;

/// How often tablets hear that a transaction lives.
const ALIVE: Duration = Duration::from_millis(500);

/// How often a node looks after the transactions of the tablets that it leads, while there are some
/// and while there are none.
const LOOK: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));

impl Node {
    pub(crate) fn send_vote(
        &self,
        coordinator: TabletId,
        txn: TxnId,
        by: TabletId,
        vote: Vote,
    ) -> BoxFuture<'_, Result<(), TxnError>> {
        let request = Request::Vote { tablet: coordinator, txn, by, vote };
        Box::pin(self.ask_leader(coordinator, request, Effect::Repeatable))
    }

    /// Tells participants the outcome of a transaction; whether all know it now.
    pub(crate) fn tell_outcome(
        &self,
        txn: TxnId,
        participants: Vec<TabletId>,
        commit: Option<Timestamp>,
        protocol: CommitProtocol,
    ) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let tell = participants.into_iter().map(|tablet| async move {
                let request = Request::Finish { tablet, txn, commit, protocol };
                let told = self.ask_leader::<()>(tablet, request, Effect::Repeatable).await;
                // What is gone had nothing prepared when it went.
                told.is_ok() || self.directory().is_gone(tablet)
            });
            join_all(tell).await.into_iter().all(|told| told)
        })
    }

    /// The outcome of a transaction, from the tablet that holds its anchor by now.
    pub(super) async fn outcome_of(&self, txn: TxnId, anchor: &Anchor) -> Result<Fate, TxnError> {
        let tablet = self.tablet_of(anchor).await?.id;
        let request = Request::Inquire { tablet, txn, anchor: anchor.clone() };
        self.ask_leader(tablet, request, Effect::Repeatable).await
    }
}

/// Tells tablets that the transactions of this node live that have locks there.
pub(crate) async fn keep_alive(node: Weak<Node>) {
    loop {
        let Some(pause) = node.upgrade().map(|node| node.env().sleep(ALIVE)) else { return };
        pause.await;
        let Some(node) = node.upgrade() else { return };
        let mut by_tablet: BTreeMap<TabletId, Vec<TxnId>> = BTreeMap::new();
        for (txn, held) in node.transactions().iter() {
            let tablets = held.upgrade().map(|held| held.all()).unwrap_or_default();
            tablets.into_iter().for_each(|tablet| by_tablet.entry(tablet).or_default().push(*txn));
        }
        for (tablet, txns) in by_tablet {
            let telling = Arc::clone(&node);
            node.env().spawn(async move {
                let request = Request::Alive { tablet, txns };
                let _ = telling.ask_leader::<()>(tablet, request, Effect::Repeatable).await;
            });
        }
    }
}

/// Looks after the transactions of the tablets that are led here, for as long as the node lives.
pub(crate) async fn look_after(node: Weak<Node>) {
    let mut pause = LOOK.1;
    loop {
        let Some(pausing) = node.upgrade().map(|node| node.env().sleep(pause)) else { return };
        pausing.await;
        let Some(node) = node.upgrade() else { return };
        pause = LOOK.1;
        for tablet in node.open_tablets() {
            let Some(chores) = tablet.look_after() else { continue };
            pause = LOOK.0;
            for doubt in chores.doubts {
                let (node, tablet) = (Arc::clone(&node), tablet.clone());
                node.env().clone().spawn(async move {
                    if doubt.pressed {
                        let (tablet, txn) = (doubt.coordinator, doubt.txn);
                        let press = Request::Press { tablet, txn };
                        let _ = node.ask_leader::<()>(tablet, press, Effect::Repeatable).await;
                    }
                    if !doubt.overdue {
                        return;
                    }
                    let commit = match node.outcome_of(doubt.txn, &doubt.anchor).await {
                        Ok(Fate::Committed(at)) => Some(at),
                        Ok(Fate::Aborted) => None,
                        Ok(Fate::Pending) | Err(_) => return,
                    };
                    // Under which protocol isn't asked: to wait is always right.
                    let _ = tablet.settle(doubt.txn, commit, CommitProtocol::CommitWait).await;
                });
            }
            for Decided { txn, commit, participants, protocol, .. } in chores.tell {
                let (telling, tablet) = (Arc::clone(&node), tablet.clone());
                node.env().spawn(async move {
                    let all = telling.tell_outcome(txn, participants, commit, protocol).await;
                    tablet.told(txn, all);
                });
            }
            if !chores.forget.is_empty() {
                let tablet = tablet.clone();
                node.env().spawn(async move {
                    let _ = tablet.forget(chores.forget).await;
                });
            }
        }
    }
}
