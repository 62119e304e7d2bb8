//! Closes timestamps of the tablets that a node leads, and tells the other nodes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use meridian_replication::Generation;
use meridian_replication::net::{Service, ServiceError};
use meridian_storage::{NodeId, TabletId};
use meridian_truetime::{EnvironmentExt, Timestamp};

use super::{Closed, Closing, INTERVAL, Receiver, Sender};
use crate::command::{decode, encode};
use crate::directory::SYSTEM_TABLET;
use crate::node::Node;
use crate::tablet::Tablet;

/// The name of the service.
pub(crate) const SERVICE: &str = "safe time";

/// A message that isn't acknowledged by then is lost.
const DEADLINE: Duration = Duration::from_secs(2);

/// What a node knows, and has said, of closed timestamps.
#[derive(Debug, Default)]
pub(crate) struct SafeTime {
    received: Mutex<Receiver>,
    senders: Mutex<BTreeMap<NodeId, Sender>>,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a tablet's replicas are, as of a generation.
type Replicas = BTreeMap<TabletId, (Generation, Vec<NodeId>)>;

/// For one node: the tablets that are closed up to the one timestamp, and the others.
type ToSay = (BTreeMap<TabletId, u64>, BTreeMap<TabletId, Closed>);

/// Closes for as long as the node lives.
pub(crate) async fn run(node: Weak<Node>) {
    let mut replicas = Replicas::new();
    loop {
        let Some(node) = node.upgrade() else { return };
        let pause = node.env().sleep(INTERVAL);
        for (peer, closing) in node.close_all(&mut replicas) {
            let telling = Arc::clone(&node);
            node.env().spawn(async move { telling.tell_closed(peer, closing).await });
        }
        drop(node);
        pause.await;
    }
}

impl Node {
    /// Closes what is led here; what to say to whom.
    fn close_all(&self, replicas: &mut Replicas) -> Vec<(NodeId, Closing)> {
        let tablets = self.open_tablets();
        let is_here = |id: TabletId| tablets.binary_search_by_key(&id, Tablet::id).is_ok();
        guard(&self.closed_timestamps().received).retain(is_here);
        replicas.retain(|id, _| is_here(*id));
        let at = self.clock().now().earliest.prev();
        let mut to_say: BTreeMap<NodeId, ToSay> = BTreeMap::new();
        for tablet in tablets.iter().filter(|tablet| tablet.id() != SYSTEM_TABLET) {
            let Some((generation, closed)) = tablet.close(at) else { continue };
            let id = tablet.id();
            let (known, nodes) = replicas.entry(id).or_default();
            if *known != generation {
                (*known, *nodes) = (generation, tablet.descriptor().replicas().collect());
            }
            for node in nodes {
                let (set, own) = to_say.entry(*node).or_default();
                if closed.at == at {
                    set.insert(id, closed.index);
                } else {
                    own.insert(id, closed);
                }
            }
        }
        let mut senders = guard(&self.closed_timestamps().senders);
        for peer in to_say.keys() {
            senders.entry(*peer).or_insert_with(|| Sender::new(self.env().random()));
        }
        let mut said = Vec::new();
        for (peer, sender) in senders.iter_mut() {
            let (set, own) = to_say.remove(peer).unwrap_or_default();
            said.extend(sender.next(at, set, own).map(|closing| (*peer, closing)));
        }
        said
    }

    async fn tell_closed(&self, peer: NodeId, closing: Closing) {
        let session = closing.session();
        let taken = if peer == self.id() {
            self.hear_closed(peer, closing)
        } else {
            let Ok(message) = encode(&closing) else { return };
            let answer = self.transport().call(peer, SERVICE, message.into(), DEADLINE).await;
            answer.is_ok_and(|answer| decode(&answer) == Ok(true))
        };
        if !taken && let Some(sender) = guard(&self.closed_timestamps().senders).get_mut(&peer) {
            sender.failed(session);
        }
    }

    fn hear_closed(&self, from: NodeId, closing: Closing) -> bool {
        let applied = |tablet| self.tablet(tablet).map_or(0, |tablet| tablet.replica().applied());
        guard(&self.closed_timestamps().received).receive(from, closing, applied)
    }

    /// The safe time of a replica here.
    pub(crate) fn safe_time_here(&self, tablet: &Tablet) -> Timestamp {
        let applied = tablet.replica().applied();
        let safe = guard(&self.closed_timestamps().received).safe(tablet.id(), applied);
        safe.unwrap_or(Timestamp::MIN)
    }
}

/// Hears what other nodes have closed.
#[derive(Debug)]
pub(crate) struct ClosedService(pub(crate) Weak<Node>);

#[async_trait]
impl Service for ClosedService {
    async fn call(&self, from: NodeId, request: Bytes) -> Result<Bytes, ServiceError> {
        let Some(node) = self.0.upgrade() else {
            return Err(ServiceError::new("the node has stopped"));
        };
        let closing = decode(&request).map_err(ServiceError::new)?;
        let taken = node.hear_closed(from, closing);
        encode(&taken).map(Bytes::from).map_err(ServiceError::new)
    }
}
