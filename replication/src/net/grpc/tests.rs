//! The gRPC network between nodes of one process. Three processes: `replication/tests`.

use meridian_truetime::World;
use tokio::net::TcpSocket;

use super::*;

const ECHO: ServiceName = "echo";
const SECOND: Duration = Duration::from_secs(1);

/// Answers with the request; some requests are special. A stream's first message says what the
/// service is to do: "echo", "fail", "count" without end, be "deaf".
struct Echo {
    env: Env,
    executed: watch::Sender<u32>,
    /// How the last "count" ended.
    ending: watch::Sender<Option<NetError>>,
}

#[async_trait]
impl Service for Echo {
    async fn call(&self, from: NodeId, request: Bytes) -> Result<Bytes, ServiceError> {
        match &request[..] {
            b"who" => return Ok(Bytes::from(from.to_string())),
            b"refuse" => return Err(ServiceError::new("as you wish: ü")),
            b"panic" => panic!("as you wish"),
            b"huge" => return Ok(Bytes::from(vec![0; MAX_MESSAGE + 1])),
            b"sleep" => self.env.sleep(Duration::from_millis(300)).await,
            _ => {}
        }
        self.executed.send_modify(|executed| *executed += 1);
        Ok(request)
    }

    async fn stream(
        &self,
        _: NodeId,
        mut incoming: Incoming,
        outgoing: Outgoing,
    ) -> Result<(), ServiceError> {
        let first = incoming.next().await.unwrap().unwrap();
        match &first[..] {
            b"fail" => Err(ServiceError::new("as you wish")),
            b"deaf" => {
                self.env.sleep(100 * SECOND).await;
                Ok(())
            }
            b"count" => {
                let ending = loop {
                    if let Err(error) = outgoing.send(Bytes::from(vec![1; 10_000])).await {
                        break error;
                    }
                };
                self.ending.send_replace(Some(ending));
                Ok(())
            }
            _ => {
                while let Some(Ok(message)) = incoming.next().await {
                    outgoing.send(message).await.map_err(ServiceError::new)?;
                }
                Ok(())
            }
        }
    }
}

struct Node {
    transport: GrpcTransport,
    echo: Arc<Echo>,
    stop: Option<oneshot::Sender<()>>,
    stopped: oneshot::Receiver<()>,
    address: String,
}

/// A node in a world of its own, which knows nobody yet.
async fn node(id: u64) -> Node {
    let env: Env = World::real(id).node(id);
    let echo = Arc::new(Echo {
        env: env.clone(),
        executed: watch::Sender::new(0),
        ending: watch::Sender::new(None),
    });
    let registry = Registry::new();
    registry.register(ECHO, echo.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (stop, stopping) = oneshot::channel();
    let (done, stopped) = oneshot::channel();
    let id = NodeId::new(id);
    let shutdown = async move { drop(stopping.await) };
    let serving = serve(listener, id, registry.clone(), env.clone(), shutdown);
    env.spawn(async move {
        serving.await.unwrap();
        let _ = done.send(());
    });
    let transport = GrpcTransport::new(id, BTreeMap::new(), env, registry);
    Node { transport, echo, stop: Some(stop), stopped, address }
}

/// An address that nobody listens at, while the socket that holds it lives.
fn deserted() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

async fn two() -> (Node, Node) {
    let (one, two) = (node(1).await, node(2).await);
    one.transport.set_address(NodeId::new(2), two.address.clone());
    (one, two)
}

impl Node {
    async fn call(&self, to: u64, request: &'static str) -> Result<Bytes, NetError> {
        let request = Bytes::from_static(request.as_bytes());
        self.transport.call(NodeId::new(to), ECHO, request, 5 * SECOND).await
    }

    async fn open(&self, to: u64, first: &'static str) -> (Outgoing, Incoming) {
        let (outgoing, incoming) = self.transport.open(NodeId::new(to), ECHO).await.unwrap();
        outgoing.send(Bytes::from_static(first.as_bytes())).await.unwrap();
        (outgoing, incoming)
    }
}

/// Runs in real time, as sockets do.
fn real(scenario: impl Future<Output = ()> + Send) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let env = World::real(0).node(0);
        env.timeout(60 * SECOND, scenario).await.expect("it hangs");
    });
}

#[test]
fn calls_and_streams_say_who_they_are_from() {
    real(async {
        let (one, two) = two().await;
        assert_eq!(one.call(2, "hello").await.unwrap(), "hello");
        assert_eq!(one.call(2, "who").await.unwrap(), "n1");
        assert_eq!(two.call(2, "who").await.unwrap(), "n2");
        let (outgoing, mut incoming) = one.open(2, "echo").await;
        for number in 0..1_000 {
            outgoing.send(Bytes::from(number.to_string())).await.unwrap();
        }
        drop(outgoing);
        for number in 0..1_000 {
            assert_eq!(incoming.next().await.unwrap().unwrap(), number.to_string());
        }
        assert_eq!(incoming.next().await, None);
    });
}

#[test]
fn errors_say_what_is_certain() {
    real(async {
        let (one, two) = two().await;
        let refused = one.call(2, "refuse").await.unwrap_err();
        let error = ServiceError::new("as you wish: ü");
        assert_eq!(refused, NetError::Remote { from: NodeId::new(2), error });

        let panicked = one.call(2, "panic").await.unwrap_err();
        assert!(matches!(panicked, NetError::Broken { .. }), "{panicked}");

        let to = NodeId::new(2);
        let absent = one.transport.call(to, "absent", Bytes::new(), SECOND).await.unwrap_err();
        assert_eq!(absent, NetError::no_such_service(to, "absent"));

        let unknown = one.call(9, "hello").await.unwrap_err();
        assert!(unknown.certainly_not_executed(), "{unknown}");

        // Node 3's address leads to node 2.
        one.transport.set_address(NodeId::new(3), two.address.clone());
        let misled = one.call(3, "hello").await.unwrap_err();
        assert!(misled.certainly_not_executed() && misled.to_string().contains("n2"), "{misled}");

        // An address that nobody listens at; and one that is none.
        let (_socket, deserted) = deserted();
        for address in [deserted, "not an address".to_owned()] {
            one.transport.set_address(NodeId::new(4), address);
            let nobody = one.call(4, "hello").await.unwrap_err();
            assert!(matches!(nobody, NetError::Unreachable { .. }), "{nobody}");
        }
        assert_eq!(*two.echo.executed.borrow(), 0);
    });
}

#[test]
fn large_messages_pass_up_to_the_limit_and_not_beyond() {
    real(async {
        let (one, _two) = two().await;
        let to = NodeId::new(2);
        let largest = Bytes::from(vec![7; MAX_MESSAGE]);
        let answer = one.transport.call(to, ECHO, largest.clone(), 30 * SECOND).await.unwrap();
        assert!(answer == largest);
        let larger = Bytes::from(vec![7; MAX_MESSAGE + 1]);
        let error = one.transport.call(to, ECHO, larger, SECOND).await.unwrap_err();
        assert_eq!(error, NetError::TooLarge { size: MAX_MESSAGE + 1 });
        let error = one.call(2, "huge").await.unwrap_err();
        assert!(matches!(error, NetError::Remote { .. }), "{error}");
    });
}

#[test]
fn a_request_runs_to_its_end_although_its_caller_gave_up() {
    real(async {
        let (one, two) = two().await;
        let (to, deadline) = (NodeId::new(2), Duration::from_millis(50));
        let sleep = Bytes::from_static(b"sleep");
        let error = one.transport.call(to, ECHO, sleep, deadline).await.unwrap_err();
        assert_eq!(error, NetError::DeadlineExceeded { to, deadline });
        assert_eq!(*two.echo.executed.borrow(), 0);
        two.echo.executed.subscribe().wait_for(|executed| *executed == 1).await.unwrap();
    });
}

#[test]
fn a_failing_service_never_ends_its_stream_cleanly() {
    real(async {
        let (one, _two) = two().await;
        let (_outgoing, mut incoming) = one.open(2, "fail").await;
        let error = incoming.next().await.unwrap().unwrap_err();
        assert!(matches!(error, NetError::Remote { .. }), "{error}");
        assert_eq!(incoming.next().await, None);
    });
}

#[test]
fn a_stream_that_finds_nobody_is_unreachable_at_both_halves() {
    real(async {
        let one = node(1).await;
        let (_socket, deserted) = deserted();
        one.transport.set_address(NodeId::new(2), deserted);
        let (outgoing, mut incoming) = one.transport.open(NodeId::new(2), ECHO).await.unwrap();
        let error = incoming.next().await.unwrap().unwrap_err();
        assert!(matches!(error, NetError::Unreachable { .. }), "{error}");
        assert_eq!(outgoing.closed().await, error);
        assert_eq!(outgoing.send(Bytes::new()).await.unwrap_err(), error);
    });
}

#[test]
fn a_writer_waits_and_others_on_its_connection_do_not() {
    real(async {
        let (one, _two) = two().await;
        let (outgoing, _incoming) = one.open(2, "deaf").await;
        let mut sent = 0;
        let flood = async {
            loop {
                outgoing.send(Bytes::from(vec![0; 100_000])).await.unwrap();
                sent += 100_000;
            }
        };
        assert!(one.echo.env.timeout(SECOND, flood).await.is_err(), "it must block");
        assert!((STREAM_WINDOW..8 * STREAM_WINDOW).contains(&sent), "{sent}");
        assert_eq!(one.call(2, "hello").await.unwrap(), "hello");
        let (outgoing, mut incoming) = one.open(2, "echo").await;
        outgoing.send(Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(incoming.next().await.unwrap().unwrap(), "x");
    });
}

#[test]
fn a_service_learns_that_its_opener_stopped_reading() {
    real(async {
        let (one, two) = two().await;
        let (_outgoing, mut incoming) = one.open(2, "count").await;
        assert!(incoming.next().await.unwrap().is_ok());
        assert!(two.echo.ending.borrow().is_none());
        drop(incoming);
        two.echo.ending.subscribe().wait_for(Option::is_some).await.unwrap();
    });
}

#[test]
fn a_server_that_stops_answers_its_calls_and_breaks_its_streams() {
    real(async {
        let (one, mut two) = two().await;
        let (_outgoing, mut incoming) = one.open(2, "deaf").await;
        one.call(2, "hello").await.unwrap();
        let stop = async {
            one.echo.env.sleep(Duration::from_millis(100)).await;
            drop(two.stop.take());
            (&mut two.stopped).await.unwrap();
        };
        let (answer, ()) = tokio::join!(one.call(2, "sleep"), stop);
        assert_eq!(answer.unwrap(), "sleep");
        let error = incoming.next().await.unwrap().unwrap_err();
        assert!(matches!(error, NetError::Broken { .. }), "{error}");
        let error = one.call(2, "hello").await.unwrap_err();
        assert!(matches!(error, NetError::Unreachable { .. }), "{error}");
    });
}
