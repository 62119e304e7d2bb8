//! The connections to the other nodes.
//!
//! A connection is made by a task of the node, whoever needs it first: its own tasks then live on
//! the node's threads, even when it was a query's thread that asked. Everybody who needs it
//! meanwhile waits for the same attempt, and if that fails they all learn it at once. There is no
//! back-off: the next one who needs the peer tries again, so that a peer which has just come back
//! is found at once.
//!
//! The attempt has succeeded when the peer has answered a greeting, if there is one: the system
//! accepts connections also for a process that hangs.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use meridian_storage::NodeId;
use meridian_truetime::env::{Env, EnvironmentExt};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use super::passport::MeetError;
use super::proto::mesh_client::MeshClient;
use super::{CONNECTION_WINDOW, ENVELOPE, MAX_FRAME, WINDOW};
use crate::net::{MAX_MESSAGE, NetError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// An idle peer is pinged this often, and given up if it doesn't answer in time: after some five
/// seconds in all.
pub(super) const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
pub(super) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) type Client = MeshClient<Channel>;

/// An attempt to connect: nothing while it lasts, then the connection or why there is none.
type Attempt = watch::Receiver<Option<Result<Client, MeetError>>>;

/// What is said first on a connection.
pub(super) type Greeting = BoxFuture<'static, Result<(), MeetError>>;

/// Where the other nodes are, and the connections to them.
#[derive(Default)]
pub(super) struct Peers(Mutex<BTreeMap<NodeId, Peer>>);

struct Peer {
    address: String,
    attempt: Option<Attempt>,
}

/// A connection, as long as it is the one in use.
pub(super) struct Connected {
    pub client: Client,
    attempt: Attempt,
}

impl Peers {
    pub fn new(addresses: BTreeMap<NodeId, String>) -> Self {
        let peer = |(id, address)| (id, Peer { address, attempt: None });
        Self(Mutex::new(addresses.into_iter().map(peer).collect()))
    }

    pub fn set_address(&self, node: NodeId, address: String) {
        let mut peers = self.lock();
        if peers.get(&node).is_none_or(|peer| peer.address != address) {
            peers.insert(node, Peer { address, attempt: None });
        }
    }

    /// Whether it is known where `to` is.
    pub fn check(&self, to: NodeId) -> Result<(), NetError> {
        if self.lock().contains_key(&to) { Ok(()) } else { Err(unknown(to)) }
    }

    /// The connection to `to`; a new one is greeted first.
    pub async fn connect(
        &self,
        env: &Env,
        to: NodeId,
        greet: impl FnOnce(Client) -> Greeting + Send + 'static,
    ) -> Result<Connected, MeetError> {
        let mut attempt = {
            let mut peers = self.lock();
            let peer = peers.get_mut(&to).ok_or_else(|| unknown(to))?;
            let failed = |attempt: &Attempt| matches!(&*attempt.borrow(), Some(Err(_)));
            match peer.attempt.as_ref().filter(|attempt| !failed(attempt)) {
                Some(attempt) => attempt.clone(),
                None => {
                    let attempt = begin(env, to, peer.address.clone(), greet);
                    peer.attempt = Some(attempt.clone());
                    attempt
                }
            }
        };
        let result = loop {
            let result = attempt.borrow_and_update().clone();
            if let Some(result) = result {
                break result;
            }
            if attempt.changed().await.is_err() {
                break Err(NetError::unreachable(to, "this node has stopped").into());
            }
        };
        Ok(Connected { client: result?, attempt })
    }

    /// The connection has failed: whoever comes next makes another.
    pub fn lost(&self, to: NodeId, connected: &Connected) {
        if let Some(peer) = self.lock().get_mut(&to) {
            peer.attempt.take_if(|attempt| attempt.same_channel(&connected.attempt));
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Peer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown(to: NodeId) -> NetError {
    NetError::unreachable(to, "its address is not known")
}

fn begin(
    env: &Env,
    to: NodeId,
    address: String,
    greet: impl FnOnce(Client) -> Greeting + Send + 'static,
) -> Attempt {
    let (tell, attempt) = watch::channel(None);
    env.spawn(async move {
        tell.send_replace(Some(connect(to, &address, greet).await));
    });
    attempt
}

async fn connect(
    to: NodeId,
    address: &str,
    greet: impl FnOnce(Client) -> Greeting + Send,
) -> Result<Client, MeetError> {
    let channel = match endpoint(address) {
        Ok(endpoint) => endpoint.connect().await.map_err(|error| innermost(&error)),
        Err(error) => Err(format!("bad address {address:?}: {error}")),
    };
    let client = MeshClient::new(channel.map_err(|reason| NetError::unreachable(to, reason))?)
        .max_decoding_message_size(MAX_MESSAGE + ENVELOPE)
        .max_encoding_message_size(MAX_MESSAGE + ENVELOPE);
    greet(client.clone()).await?;
    Ok(client)
}

fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// The first cause of an error: "Connection refused" rather than "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}
