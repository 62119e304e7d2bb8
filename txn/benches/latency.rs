//! What commits and reads take in virtual time, against their floors: docs/latency.md.
//!
//!     cargo bench -p meridian-txn --bench latency

use std::time::Duration;

use floors::{Latency, METRO_3, Operation, Scene, US_EU_3, measure};

#[allow(dead_code, reason = "tests use the rest")]
#[path = "../tests/it/cluster.rs"]
mod cluster;
#[path = "../tests/it/floors.rs"]
mod floors;

/// A tablet on each of three continents, and gateways beside a leader, beside a follower, and far from
/// everything.
const WORLD_10: Scene = Scene {
    topology: "world-10",
    tablets: [
        ["dallas", "toronto", "washington-dc"],
        ["frankfurt", "london", "madrid"],
        ["tokyo", "osaka", "sydney"],
    ],
    gateways: ["dallas", "london", "sao-paulo"],
};

/// In milliseconds.
const EPSILONS: [u64; 6] = [0, 1, 4, 7, 16, 40];
/// How often each operation is measured; the median counts.
const TIMES: usize = 7;

fn main() {
    let mut all = Vec::new();
    for scene in [US_EU_3, WORLD_10, METRO_3] {
        let by_epsilon = EPSILONS
            .map(|epsilon| measure(scene, Duration::from_millis(epsilon), Operation::all(), TIMES));
        print(scene, &by_epsilon);
        all.extend(by_epsilon.into_iter().flatten());
    }
    let far = all.iter().filter(|latency| !latency.is_close()).count();
    let excess = all.iter().map(|latency| latency.median().saturating_sub(latency.floor)).max();
    let single = all.iter().map(|latency| latency.took[TIMES - 1].saturating_sub(latency.floor));
    let micros = |time: Option<Duration>| time.unwrap_or_default().as_micros();
    println!(
        "\nOf {} medians, {far} are more than 2 % and 0.2 ms above their floor. The most that one is \
         above it: {} µs; that anything ever was: {} µs. The worst ratio of a median to its floor: \
         {:.4}.",
        all.len(),
        micros(excess),
        micros(single.max()),
        all.iter().filter(|latency| !latency.floor.is_zero()).map(ratio).fold(0.0, f64::max),
    );
}

fn ratio(latency: &Latency) -> f64 {
    latency.median().as_secs_f64() / latency.floor.as_secs_f64()
}

/// One row per gateway and operation; with each ε what was measured, the floor, and their ratio.
fn print(scene: Scene, by_epsilon: &[Vec<Latency>]) {
    println!("\n{}: one node in each region", scene.topology);
    for (name, regions) in ["A", "B", "C"].into_iter().zip(scene.tablets) {
        println!("{name}: led in {}, replicas in {} and {}", regions[0], regions[1], regions[2]);
    }
    let head = EPSILONS.map(|epsilon| format!("{:^21}", format!("ε = {epsilon} ms"))).join(" | ");
    println!("\n| {:<32} | {:<9} | {head} |", "ms: measured, floor, ratio", "gateway");
    println!("|{0:-<34}|{0:-<11}|{1}", "", format!("{:-<23}|", "").repeat(EPSILONS.len()));
    for (row, first) in by_epsilon[0].iter().enumerate() {
        let cells = by_epsilon.iter().map(|latencies| {
            let latency = &latencies[row];
            let [median, floor] = [latency.median(), latency.floor].map(|t| t.as_secs_f64() * 1e3);
            let ratio = match latency.floor.is_zero() {
                true => "-".to_owned(),
                false => format!("{:.3}", ratio(latency)),
            };
            format!("{median:>7.2} {floor:>7.2} {ratio:>5}")
        });
        let cells = cells.collect::<Vec<_>>().join(" | ");
        println!("| {:<32} | {:<9} | {cells} |", first.operation.to_string(), first.gateway);
    }
}
