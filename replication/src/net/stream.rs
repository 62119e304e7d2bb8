//! The two halves of a stream, the same for every transport, and the transport's own ends of them.
//!
//! ```text
//!   Outgoing ──queue──▶ Outlet   (the transport carries it across)   Inlet ──queue──▶ Incoming
//! ```
//!
//! The queues are unbounded; what bounds them is credit. A message holds credit of its window from
//! before it enters a queue until its reader takes it. A transport that carries the [`Frame`] as it
//! is carries the credit along, and the window spans both queues; one that unpacks the bytes gives
//! the credit back at the outlet and takes new credit at the inlet.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::future::{Either, select};
use meridian_storage::NodeId;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use super::{NetError, STREAM_WINDOW, check_size};

/// What a message costs of the window beyond its bytes, so that empty ones are bounded too.
const FRAME_OVERHEAD: usize = 64;

/// The smaller of a message's cost and the whole window, which always lets one message through.
fn credit_for(message: &Bytes) -> u32 {
    let cost = message.len().saturating_add(FRAME_OVERHEAD).min(STREAM_WINDOW);
    u32::try_from(cost).unwrap_or(u32::MAX)
}

/// A message on its way, with the credit that it holds.
#[derive(Debug)]
pub(super) struct Frame {
    pub bytes: Bytes,
    _credit: OwnedSemaphorePermit,
}

type Item = Result<Frame, NetError>;

/// The state of an [`Outgoing`], which the transport can break from its side.
#[derive(Debug)]
pub(super) struct Gate {
    peer: NodeId,
    window: Arc<Semaphore>,
    fate: OnceLock<NetError>,
    broken: Notify,
}

impl Gate {
    /// Breaks the half: what it sends from now on fails with `error`. The first error stays.
    pub fn shut(&self, error: NetError) {
        let _ = self.fate.set(error);
        self.window.close();
        self.broken.notify_waiters();
    }

    /// Completes when the half is broken.
    pub async fn shut_down(&self) {
        let notified = self.broken.notified();
        if !self.window.is_closed() {
            notified.await;
        }
    }

    fn fate(&self) -> NetError {
        let closed = || NetError::broken(self.peer, "the stream is closed");
        self.fate.get().cloned().unwrap_or_else(closed)
    }
}

/// The half of a stream that sends. Dropping it ends its direction; see the
/// [module](super#what-a-stream-promises).
pub struct Outgoing {
    gate: Arc<Gate>,
    queue: mpsc::UnboundedSender<Item>,
}

impl Outgoing {
    /// Sends one message, once the reader's window has room for it. Cancelled before it is done,
    /// it has sent nothing.
    ///
    /// # Errors
    /// [`NetError::TooLarge`] beyond [`MAX_MESSAGE`](super::MAX_MESSAGE); otherwise why the stream
    /// is over.
    pub async fn send(&self, message: Bytes) -> Result<(), NetError> {
        check_size(&message)?;
        let window = Arc::clone(&self.gate.window);
        let Ok(credit) = window.acquire_many_owned(credit_for(&message)).await else {
            return Err(self.gate.fate());
        };
        let frame = Frame { bytes: message, _credit: credit };
        self.queue.send(Ok(frame)).map_err(|_| self.gate.fate())
    }

    /// Completes when nothing that is sent any more would be read, and says why.
    pub async fn closed(&self) -> NetError {
        let shut = std::pin::pin!(self.gate.shut_down());
        let unread = std::pin::pin!(self.queue.closed());
        select(shut, unread).await;
        self.gate.fate()
    }

    /// The node at the other end.
    #[must_use]
    pub fn peer(&self) -> NodeId {
        self.gate.peer
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").field("peer", &self.gate.peer).finish_non_exhaustive()
    }
}

/// The half of a stream that receives.
pub struct Incoming {
    peer: NodeId,
    queue: mpsc::UnboundedReceiver<Item>,
}

impl Incoming {
    /// The next message; `None` at the end, and after an error. Cancelled before it is done, it
    /// has taken nothing.
    pub async fn next(&mut self) -> Option<Result<Bytes, NetError>> {
        match self.queue.recv().await? {
            Ok(frame) => Some(Ok(frame.bytes)),
            Err(error) => {
                self.queue.close();
                while self.queue.try_recv().is_ok() {}
                Some(Err(error))
            }
        }
    }

    /// The node at the other end.
    #[must_use]
    pub fn peer(&self) -> NodeId {
        self.peer
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// The transport's end of an [`Outgoing`]. Dropping it closes that.
pub(super) struct Outlet {
    pub gate: Arc<Gate>,
    queue: mpsc::UnboundedReceiver<Item>,
}

impl Outlet {
    /// What was sent next; `None` once the direction has ended or is broken.
    pub async fn next(&mut self) -> Option<Item> {
        let item = std::pin::pin!(self.queue.recv());
        let shut = std::pin::pin!(self.gate.shut_down());
        match select(item, shut).await {
            Either::Left((item, _)) => item,
            Either::Right(_) => None,
        }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.gate.shut(NetError::broken(self.gate.peer, "the stream is closed"));
    }
}

/// The transport's end of an [`Incoming`]. When the last clone is dropped, the direction has ended.
#[derive(Clone, Debug)]
pub(super) struct Inlet(mpsc::UnboundedSender<Item>);

impl Inlet {
    /// Hands a message or an error to the reader; false if there is none any more.
    pub fn put(&self, item: Item) -> bool {
        self.0.send(item).is_ok()
    }

    /// Completes when the reader is gone.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

fn gate(peer: NodeId) -> Arc<Gate> {
    let window = Arc::new(Semaphore::new(STREAM_WINDOW));
    Arc::new(Gate { peer, window, fate: OnceLock::new(), broken: Notify::new() })
}

/// A new sending half towards `peer`, with the transport's end of it, and a way to put an error
/// behind what was sent. The direction ends only when that is dropped too.
pub(super) fn outgoing(peer: NodeId) -> (Outgoing, Outlet, Inlet) {
    let (sender, queue) = mpsc::unbounded_channel();
    let gate = gate(peer);
    let outgoing = Outgoing { gate: Arc::clone(&gate), queue: sender.clone() };
    (outgoing, Outlet { gate, queue }, Inlet(sender))
}

/// A new receiving half from `peer`, with the transport's end of it.
pub(super) fn incoming(peer: NodeId) -> (Inlet, Incoming) {
    let (sender, queue) = mpsc::unbounded_channel();
    (Inlet(sender), Incoming { peer, queue })
}

/// Both halves of a direction inside one node, joined, and a way to put an error behind what was
/// sent. The direction ends only when that is dropped too.
pub(super) fn pipe(node: NodeId) -> (Outgoing, Incoming, Inlet) {
    let (sender, queue) = mpsc::unbounded_channel();
    let outgoing = Outgoing { gate: gate(node), queue: sender.clone() };
    (outgoing, Incoming { peer: node, queue }, Inlet(sender))
}

/// Credit for messages that arrive as plain bytes.
pub(super) struct Window(Arc<Semaphore>);

impl Window {
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(STREAM_WINDOW)))
    }

    /// The message as a frame, once there is room for it.
    pub async fn admit(&self, bytes: Bytes) -> Option<Frame> {
        let credit = Arc::clone(&self.0).acquire_many_owned(credit_for(&bytes)).await.ok()?;
        Some(Frame { bytes, _credit: credit })
    }
}
