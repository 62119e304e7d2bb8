//! Running services, for every transport, and a node's calls to itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian_storage::NodeId;
use meridian_truetime::env::{Elapsed, Env, EnvironmentExt};
use tokio::sync::oneshot;

use super::stream::{self, Inlet};
use super::{
    Incoming, MAX_MESSAGE, NetError, Outgoing, Registry, Service, ServiceError, check_size,
};

/// A node as its own transport sees it.
#[derive(Clone, Debug)]
pub(super) struct Home {
    pub id: NodeId,
    pub env: Env,
    pub registry: Registry,
}

impl Home {
    /// The node's service of that name.
    pub fn service(&self, name: &str) -> Result<Arc<dyn Service>, NetError> {
        self.registry.get(name).ok_or_else(|| NetError::no_such_service(self.id, name))
    }

    /// A call to the node itself.
    pub async fn call(
        &self,
        service: &str,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, NetError> {
        check_size(&request)?;
        let service = self.service(service)?;
        let (done, answer) = oneshot::channel();
        let id = self.id;
        self.env.spawn(async move {
            let _ = done.send(execute(&*service, id, id, request).await);
        });
        await_answer(&self.env, id, deadline, answer).await
    }

    /// A stream to the node itself.
    pub fn open(&self, service: &str) -> Result<(Outgoing, Incoming), NetError> {
        let service = self.service(service)?;
        let (outgoing, theirs_in, _) = stream::pipe(self.id);
        let (theirs_out, incoming, last_word) = stream::pipe(self.id);
        self.env.spawn(serve(service, self.id, self.id, theirs_in, theirs_out, last_word));
        Ok((outgoing, incoming))
    }
}

/// Waits for the answer of a call to node `to`.
pub(super) async fn await_answer(
    env: &Env,
    to: NodeId,
    deadline: Duration,
    answer: oneshot::Receiver<Result<Bytes, NetError>>,
) -> Result<Bytes, NetError> {
    match env.timeout(deadline, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(gave_up(to)),
        Err(Elapsed) => Err(NetError::DeadlineExceeded { to, deadline }),
    }
}

/// What a caller learns if the task that served it ended without an answer.
pub(super) fn gave_up(node: NodeId) -> NetError {
    NetError::broken(node, "the service panicked or its node halted")
}

/// Runs one request of node `from` at node `here`.
pub(super) async fn execute(
    service: &dyn Service,
    here: NodeId,
    from: NodeId,
    request: Bytes,
) -> Result<Bytes, NetError> {
    let refused = |error| NetError::Remote { from: here, error };
    let answer = service.call(from, request).await.map_err(refused)?;
    if answer.len() > MAX_MESSAGE {
        return Err(refused(ServiceError::new(format_args!(
            "its answer of {} bytes exceeds the limit of {MAX_MESSAGE} bytes",
            answer.len()
        ))));
    }
    Ok(answer)
}

/// Serves one stream of node `from` at node `here`. `last_word` keeps the direction to the opener
/// from ending before the service has said how it went.
pub(super) async fn serve(
    service: Arc<dyn Service>,
    here: NodeId,
    from: NodeId,
    incoming: Incoming,
    outgoing: Outgoing,
    last_word: Inlet,
) {
    let mut last_word = LastWord { node: here, inlet: Some(last_word) };
    let result = service.stream(from, incoming, outgoing).await;
    if let Some(inlet) = last_word.inlet.take()
        && let Err(error) = result
    {
        inlet.put(Err(NetError::Remote { from: here, error }));
    }
}

/// Tells the opener of a service that ended without returning.
struct LastWord {
    node: NodeId,
    inlet: Option<Inlet>,
}

impl Drop for LastWord {
    fn drop(&mut self) {
        if let Some(inlet) = self.inlet.take() {
            inlet.put(Err(gave_up(self.node)));
        }
    }
}
