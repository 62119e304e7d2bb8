//! The gRPC network between nodes of one process. Three processes: `replication/tests`.

use std::sync::atomic::{AtomicU64, Ordering};

use meridian_storage::{Identity, SimulatedDisk};
use meridian_truetime::World;
use tokio::net::TcpSocket;
use tokio::sync::watch;

use super::*;
use crate::net::{MAX_MESSAGE, Service};

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

/// A node with an identity on a disk of its own.
struct Citizen {
    transport: GrpcTransport,
    passport: Arc<Passport>,
    address: String,
}

async fn citizen(id: u64, cluster: &str, disk: &SimulatedDisk, proposal: &[u64]) -> Citizen {
    // Each draws its own numbers, as processes do.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let env: Env = World::real(NEXT.fetch_add(1, Ordering::Relaxed)).node(id);
    let identity = Identity::open(&env, disk, cluster, NodeId::new(id)).expect("its own");
    let proposal = proposal.iter().copied().map(NodeId::new).collect();
    let passport = Arc::new(Passport::new(Arc::new(identity), proposal));
    let registry = Registry::new();
    let echo = Echo {
        env: env.clone(),
        executed: watch::Sender::new(0),
        ending: watch::Sender::new(None),
    };
    registry.register(ECHO, Arc::new(echo));
    let transport = GrpcTransport::with_passport(
        Arc::clone(&passport),
        BTreeMap::new(),
        BTreeMap::new(),
        env.clone(),
        registry,
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = transport.clone();
    env.spawn(async move { server.serve(listener, std::future::pending()).await.unwrap() });
    Citizen { transport, passport, address }
}

impl Citizen {
    async fn hello(&self, to: u64, at: &Citizen) -> Result<Bytes, NetError> {
        self.transport.set_address(NodeId::new(to), at.address.clone());
        let request = Bytes::from_static(b"hello");
        self.transport.call(NodeId::new(to), ECHO, request, 5 * SECOND).await
    }

    async fn meet(&self, to: u64, at: &Citizen) -> Result<(), Verdict> {
        self.transport.set_address(NodeId::new(to), at.address.clone());
        match self.transport.meet(NodeId::new(to), 5 * SECOND).await {
            Ok(()) => Ok(()),
            Err(MeetError::Refused(refusal)) => Err(refusal.verdict),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_node_that_lost_its_disk_is_not_let_in_again() {
    real(async {
        let disks: Vec<SimulatedDisk> = (0..3).map(|_| SimulatedDisk::new()).collect();
        let one = citizen(1, "x", &disks[0], &[1, 2]).await;
        let two = citizen(2, "x", &disks[1], &[1, 2]).await;
        assert_eq!(one.hello(2, &two).await.unwrap(), "hello");
        assert_eq!(two.hello(1, &one).await.unwrap(), "hello");

        // Node 2 with another disk, whether it calls or is called.
        let impostor = citizen(2, "x", &disks[2], &[1, 2]).await;
        let error = impostor.hello(1, &one).await.unwrap_err();
        assert!(error.certainly_not_executed() && error.to_string().contains("store"), "{error}");
        assert!(impostor.passport.exposed().await.contains("node 1 knows node 2"));
        // A crash of the disk takes it away from the process that had it open.
        disks[2].crash(1);
        let impostor = citizen(2, "x", &disks[2], &[1, 2]).await;
        let error = one.hello(2, &impostor).await.unwrap_err();
        assert!(error.certainly_not_executed(), "{error}");
        assert!(impostor.passport.exposed().await.contains("node 1 knows node 2"));
        assert!(one.passport.exposed().now_or_never().is_none(), "node 1 is in order");

        // The right one comes back, and so does the one that remembers.
        disks[0].crash(1);
        let one = citizen(1, "x", &disks[0], &[1, 2]).await;
        assert_eq!(two.hello(1, &one).await.unwrap(), "hello");
        assert_eq!(one.meet(2, &impostor).await, Err(Verdict::Changed));
    });
}

#[test]
fn nodes_of_other_clusters_and_other_numbers_are_refused() {
    real(async {
        let new = SimulatedDisk::new;
        let one = citizen(1, "x", &new(), &[1, 2, 3]).await;
        let other = citizen(2, "y", &new(), &[1, 2, 3]).await;
        assert_eq!(one.meet(2, &other).await, Err(Verdict::Cluster));
        let three = citizen(3, "x", &new(), &[1, 2, 3]).await;
        assert_eq!(one.meet(2, &three).await, Err(Verdict::Address));
        let longer = citizen(2, "x", &new(), &[1, 2, 3, 4, 5]).await;
        assert_eq!(one.meet(2, &longer).await, Err(Verdict::Voters));
        // Nothing of a node that doesn't say who it is.
        let nobody = node(4).await;
        nobody.transport.set_address(NodeId::new(1), one.address.clone());
        let error = nobody.call(1, "hello").await.unwrap_err();
        assert!(!matches!(error, NetError::Remote { .. }), "{error}");
    });
}

#[test]
fn how_the_cluster_began_is_told_to_newcomers() {
    real(async {
        let new = SimulatedDisk::new;
        let voters: Vec<NodeId> = [1, 2, 3].map(NodeId::new).to_vec();
        let one = citizen(1, "x", &new(), &[1, 2, 3]).await;
        one.passport.identity().begin(&voters).unwrap();
        let newcomer = citizen(4, "x", &new(), &[1, 2, 3, 4, 5]).await;
        assert_eq!(newcomer.meet(1, &one).await, Ok(()));
        assert_eq!(newcomer.passport.identity().first_voters(), Some(voters));
        let elsewhere = citizen(2, "x", &new(), &[1, 2]).await;
        elsewhere.passport.identity().begin(&[NodeId::new(2)]).unwrap();
        assert_eq!(one.meet(2, &elsewhere).await, Err(Verdict::Cluster));
    });
}

#[test]
fn added_latency_is_a_round_trip_for_calls_and_keeps_streams_in_order() {
    real(async {
        let two = node(2).await;
        let env: Env = World::real(9).node(1);
        let latency = Latency { there: Duration::from_millis(40), back: Duration::from_millis(60) };
        let home = Home { id: NodeId::new(1), env: env.clone(), registry: Registry::new() };
        let to = NodeId::new(2);
        let addresses = BTreeMap::from([(to, two.address.clone())]);
        let far = GrpcTransport::build(home, addresses, None, BTreeMap::from([(to, latency)]));
        let begun = env.moment();
        far.call(to, ECHO, Bytes::from_static(b"x"), 5 * SECOND).await.unwrap();
        assert!(env.moment().since(begun) >= Duration::from_millis(100));

        let begun = env.moment();
        let (outgoing, mut incoming) = far.open(to, ECHO).await.unwrap();
        for number in 0..200 {
            outgoing.send(Bytes::from(format!("echo {number}"))).await.unwrap();
        }
        drop(outgoing);
        // The first message tells the service what to do.
        for number in 1..200 {
            assert_eq!(incoming.next().await.unwrap().unwrap(), format!("echo {number}"));
        }
        assert_eq!(incoming.next().await, None);
        let took = env.moment().since(begun);
        assert!(took >= Duration::from_millis(100), "{took:?}");
        assert!(took < Duration::from_secs(5), "messages don't wait for each other: {took:?}");
        assert_eq!(
            far.sent(to),
            (201, 1 + (0..200).map(|n| format!("echo {n}").len() as u64).sum::<u64>())
        );
    });
}

#[test]
fn a_peer_that_comes_back_is_found_at_once() {
    real(async {
        let (one, mut two) = two().await;
        one.call(2, "hello").await.unwrap();
        drop(two.stop.take());
        (&mut two.stopped).await.unwrap();
        // The first may still find the old connection, and break with it; then there is none.
        match one.call(2, "hello").await {
            Err(NetError::Unreachable { .. }) => {}
            Err(NetError::Broken { .. }) => {
                let next = one.call(2, "hello").await;
                assert!(matches!(next, Err(NetError::Unreachable { .. })), "{next:?}");
            }
            other => panic!("{other:?}"),
        }
        let listener = TcpListener::bind(&two.address).await.unwrap();
        let (id, env) = (NodeId::new(2), World::real(2).node(3));
        let registry = Registry::new();
        registry.register(ECHO, two.echo.clone());
        let serving = serve(listener, id, registry, env.clone(), std::future::pending());
        env.spawn(async move { serving.await.unwrap() });
        assert_eq!(one.call(2, "hello").await.unwrap(), "hello");
    });
}

#[test]
fn a_connection_outlives_the_query_that_needed_it_first() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (node_runtime, query) = (runtime(), runtime());
    node_runtime.block_on(async {
        let two = node(2).await;
        let env: Env = World::real_with_computing(7, query.handle().clone()).node(1);
        let to = NodeId::new(2);
        let addresses = BTreeMap::from([(to, two.address.clone())]);
        let transport = GrpcTransport::new(NodeId::new(1), addresses, env.clone(), Registry::new());
        let (tell, opened) = oneshot::channel();
        let first = transport.clone();
        env.compute(async move {
            let halves = first.open(to, ECHO).await.unwrap();
            halves.0.send(Bytes::from_static(b"echo")).await.unwrap();
            halves.0.send(Bytes::from_static(b"one")).await.unwrap();
            let _ = tell.send(halves);
        });
        let (outgoing, mut incoming) = opened.await.unwrap();
        assert_eq!(incoming.next().await.unwrap().unwrap(), "one");
        // Its tasks end here.
        query.shutdown_background();
        outgoing.send(Bytes::from_static(b"two")).await.unwrap();
        let answer = env.timeout(30 * SECOND, incoming.next()).await.expect("it hangs");
        assert_eq!(answer.unwrap().unwrap(), "two");
    });
}

#[test]
fn a_peer_that_accepts_and_hangs_is_unreachable() {
    real(async {
        let one = citizen(1, "x", &SimulatedDisk::new(), &[1, 2]).await;
        let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = NodeId::new(2);
        one.transport.set_address(to, hanging.local_addr().unwrap().to_string());
        let calls = (0..3).map(|_| one.transport.call(to, ECHO, Bytes::new(), 30 * SECOND));
        let env = World::real(0).node(0);
        let calls = env.timeout(10 * SECOND, futures::future::join_all(calls)).await;
        for call in calls.expect("long before its deadline") {
            assert!(matches!(call, Err(NetError::Unreachable { .. })), "{call:?}");
        }
    });
}
