//! Topologies: regions and the round-trip times between them.
//!
//! A topology is a symmetric matrix of milliseconds in a CSV file whose first row and first column
//! name the regions:
//!
//! ```text
//! region,us-east,us-west,eu-west
//! us-east,0,66,64
//! us-west,66,0,146
//! eu-west,64,146,0
//! ```
//!
//! The shipped ones are in `replication/topologies`, with their sources. A round trip inside one
//! region takes [`WITHIN_REGION`]. The exception is a topology in which *every* round trip is 0,
//! as in the shipped `local`: it is one place, whose regions are names only, and nothing takes any
//! time in it, within its regions neither.

use std::path::PathBuf;
use std::time::Duration;

/// A round trip between two nodes of one region (the source is in `replication/topologies`).
pub const WITHIN_REGION: Duration = Duration::from_micros(100);

/// The longest round trip that a topology may name.
const LONGEST: Duration = Duration::from_mins(1);

const SHIPPED: [(&str, &str); 5] = [
    ("us-eu-3", include_str!("../../topologies/us-eu-3.csv")),
    ("world-10", include_str!("../../topologies/world-10.csv")),
    ("metro-3", include_str!("../../topologies/metro-3.csv")),
    ("spanner-osdi12", include_str!("../../topologies/spanner-osdi12.csv")),
    ("local", include_str!("../../topologies/local.csv")),
];

/// What is wrong with a topology.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// Neither a shipped name nor a file that can be read.
    #[error("topology {path:?} is neither a readable file ({source}) nor one of {}", names())]
    Unreadable {
        /// What was asked for.
        path: PathBuf,
        /// Why it can't be read as a file.
        source: std::io::Error,
    },
    /// The file is no matrix of round-trip times.
    #[error("{name}, line {line}: {problem}")]
    Malformed {
        /// The file, or the shipped topology.
        name: String,
        /// Its line, from 1.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
    /// The topology has no such region.
    #[error("there is no region {region:?}; the regions are {}", regions.join(", "))]
    NoSuchRegion {
        /// What was asked for.
        region: String,
        /// What there is.
        regions: Vec<String>,
    },
}

fn names() -> String {
    SHIPPED.map(|(name, _)| name).join(", ")
}

/// Regions and the round-trip times between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    name: String,
    regions: Vec<String>,
    /// Row by row.
    round_trips: Vec<Vec<Duration>>,
}

impl Topology {
    /// The names of the shipped topologies.
    #[must_use]
    pub fn shipped() -> Vec<&'static str> {
        SHIPPED.iter().map(|(name, _)| *name).collect()
    }

    /// A shipped topology, or one from a CSV file. A shipped name goes before a file of that name.
    ///
    /// # Errors
    /// If there is neither, or the file is malformed.
    pub fn load(name_or_path: &str) -> Result<Self, TopologyError> {
        if let Some((name, text)) = SHIPPED.iter().find(|(name, _)| *name == name_or_path) {
            return Self::parse(name, text);
        }
        let path = PathBuf::from(name_or_path);
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(name_or_path, &text),
            Err(source) => Err(TopologyError::Unreadable { path, source }),
        }
    }

    /// Reads a topology from the text of a CSV file; `name` is for error messages.
    ///
    /// # Errors
    /// The first thing that is wrong with it, and in which line.
    pub fn parse(name: &str, text: &str) -> Result<Self, TopologyError> {
        let malformed =
            |(line, problem)| TopologyError::Malformed { name: name.to_owned(), line, problem };
        let (regions, round_trips) = matrix(text).map_err(malformed)?;
        Ok(Self { name: name.to_owned(), regions, round_trips })
    }

    /// The shipped name, or the path that it was loaded from.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The regions' names, in the file's order; there is at least one.
    #[must_use]
    pub fn regions(&self) -> &[String] {
        &self.regions
    }

    /// The place of a region in [`Topology::regions`].
    ///
    /// # Errors
    /// If there is no such region.
    pub fn region(&self, name: &str) -> Result<usize, TopologyError> {
        self.regions.iter().position(|region| region == name).ok_or_else(|| {
            TopologyError::NoSuchRegion { region: name.to_owned(), regions: self.regions.clone() }
        })
    }

    /// The round trip between two nodes, one in each region (which may be the same one).
    ///
    /// # Panics
    /// If there are not so many regions.
    #[must_use]
    pub fn round_trip(&self, from: usize, to: usize) -> Duration {
        let one_place = self.longest_round_trip().is_zero();
        if from == to && !one_place { WITHIN_REGION } else { self.round_trips[from][to] }
    }

    /// The longest round trip between two regions.
    #[must_use]
    pub fn longest_round_trip(&self) -> Duration {
        self.round_trips.iter().flatten().copied().max().unwrap_or_default()
    }

    /// One way from a node in one region to one in the other: half the round trip, to the
    /// microsecond, so divided that there and back again is the round trip exactly.
    ///
    /// # Panics
    /// If there are not so many regions.
    #[must_use]
    pub fn one_way(&self, from: usize, to: usize) -> Duration {
        let round_trip = self.round_trip(from, to);
        let half = u64::try_from((round_trip / 2).as_micros()).unwrap_or(u64::MAX);
        let half = Duration::from_micros(half);
        if from <= to { half } else { round_trip - half }
    }
}

type Matrix = (Vec<String>, Vec<Vec<Duration>>);
type Problem = (usize, String);

/// The matrix that a CSV file holds, or the line of its first mistake, and which that is.
fn matrix(text: &str) -> Result<Matrix, Problem> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let mut lines = lines.filter(|(_, line)| !line.is_empty());
    let Some((first_line, header)) = lines.next() else {
        return Err((1, "the file is empty".to_owned()));
    };
    let regions = header_regions(header).map_err(|problem| (first_line, problem))?;
    let mut rows: Vec<Vec<Duration>> = Vec::new();
    let mut last_line = first_line;
    for (line, text) in lines {
        last_line = line;
        let row = row(text, &regions, &rows).map_err(|problem| (line, problem))?;
        rows.push(row);
    }
    if rows.len() < regions.len() {
        return Err((last_line, format!("the row of {:?} is missing", regions[rows.len()])));
    }
    Ok((regions, rows))
}

fn header_regions(header: &str) -> Result<Vec<String>, String> {
    let mut cells = header.split(',').map(str::trim);
    if cells.next() != Some("region") {
        return Err("the first row must begin with \"region\"".to_owned());
    }
    let mut regions: Vec<String> = Vec::new();
    for cell in cells {
        if cell.is_empty() {
            return Err("a region has no name".to_owned());
        }
        if regions.iter().any(|region| region == cell) {
            return Err(format!("region {cell:?} is named twice"));
        }
        regions.push(cell.to_owned());
    }
    if regions.is_empty() { Err("there are no regions".to_owned()) } else { Ok(regions) }
}

/// The next row below `above`.
fn row(text: &str, regions: &[String], above: &[Vec<Duration>]) -> Result<Vec<Duration>, String> {
    let mut cells = text.split(',').map(str::trim);
    let name = cells.next().unwrap_or_default();
    let index = above.len();
    match regions.get(index) {
        None => return Err(format!("there are more rows than the {} regions", regions.len())),
        Some(region) if region != name => {
            return Err(format!("row {name:?} stands where {region:?} must"));
        }
        Some(_) => {}
    }
    let cells: Vec<&str> = cells.collect();
    if cells.len() != regions.len() {
        return Err(format!("{} times for {} regions", cells.len(), regions.len()));
    }
    let times: Vec<Duration> = cells.into_iter().map(milliseconds).collect::<Result<_, _>>()?;
    if !times[index].is_zero() {
        return Err(format!("the round trip from {name:?} to itself must be 0"));
    }
    for (other, row) in above.iter().enumerate() {
        if row[index] != times[other] {
            let region = &regions[other];
            return Err(format!("{name:?} to {region:?} is not what {region:?} to {name:?} is"));
        }
    }
    Ok(times)
}

fn milliseconds(cell: &str) -> Result<Duration, String> {
    let not_a_time = || format!("{cell:?} is not a time in milliseconds");
    let time: f64 = cell.parse().map_err(|_| not_a_time())?;
    let longest = LONGEST.as_secs_f64() * 1e3;
    if time.is_nan() {
        Err(not_a_time())
    } else if time < 0.0 {
        Err(format!("{cell} is negative"))
    } else if time > longest {
        Err(format!("{cell} exceeds the longest round trip allowed, {longest} ms"))
    } else {
        // To the microsecond, which is as fine as virtual time is.
        let exact = Duration::from_secs_f64(time / 1e3);
        let micros = (exact.as_nanos() + 500) / 1_000;
        Ok(Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_topologies_load() {
        for name in Topology::shipped() {
            let topology = Topology::load(name).expect("a shipped topology");
            assert_eq!(topology.name(), name);
            assert!(topology.regions().len() >= 3);
        }
        let world = Topology::load("world-10").expect("shipped");
        let (tokyo, london) = (world.region("tokyo").unwrap(), world.region("london").unwrap());
        assert_eq!(world.round_trip(tokyo, london), Duration::from_millis(243));
        assert_eq!(world.round_trip(tokyo, tokyo), WITHIN_REGION);
        assert_eq!(world.longest_round_trip(), Duration::from_millis(328));
    }

    #[test]
    fn local_takes_no_time_anywhere() {
        let local = Topology::load("local").expect("shipped");
        assert_eq!(local.regions(), ["local-1", "local-2", "local-3"]);
        assert_eq!(local.round_trip(0, 0), Duration::ZERO);
        assert_eq!(local.round_trip(0, 2), Duration::ZERO);
    }

    #[test]
    fn there_and_back_is_the_round_trip_exactly() {
        let odd = Topology::parse("odd", "region,a,b\na,0,2.081\nb,2.081,0").expect("fine");
        assert_eq!(odd.one_way(0, 1), Duration::from_micros(1_040));
        assert_eq!(odd.one_way(1, 0), Duration::from_micros(1_041));
        assert_eq!(odd.one_way(0, 0), WITHIN_REGION / 2);
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        let cases = [
            ("", "x, line 1: the file is empty"),
            ("area,a\na,0", "x, line 1: the first row must begin with \"region\""),
            ("region", "x, line 1: there are no regions"),
            ("region,a,\na,0,1", "x, line 1: a region has no name"),
            ("region,a,a\na,0,1\na,1,0", "x, line 1: region \"a\" is named twice"),
            ("region,a,b\na,0,1\n", "x, line 2: the row of \"b\" is missing"),
            ("region,a,b\na,0,1\n\nc,1,0", "x, line 4: row \"c\" stands where \"b\" must"),
            ("region,a\na,0\nb,0", "x, line 3: there are more rows than the 1 regions"),
            ("region,a,b\na,0", "x, line 2: 1 times for 2 regions"),
            ("region,a,b\na,0,x\nb,1,0", "x, line 2: \"x\" is not a time in milliseconds"),
            ("region,a,b\na,0,nan\nb,1,0", "x, line 2: \"nan\" is not a time in milliseconds"),
            ("region,a,b\na,0,-1\nb,-1,0", "x, line 2: -1 is negative"),
            (
                "region,a,b\na,0,inf\nb,1,0",
                "x, line 2: inf exceeds the longest round trip allowed, 60000 ms",
            ),
            ("region,a\na,1", "x, line 2: the round trip from \"a\" to itself must be 0"),
            ("region,a,b\na,0,1\nb,2,0", "x, line 3: \"b\" to \"a\" is not what \"a\" to \"b\" is"),
        ];
        for (text, expected) in cases {
            let error = Topology::parse("x", text).expect_err(text);
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn a_name_that_is_nothing_lists_what_there_is() {
        let error = Topology::load("no-such-topology").expect_err("there is none").to_string();
        assert!(error.contains("no-such-topology") && error.contains("us-eu-3, world-10"));
    }

    #[test]
    fn a_file_loads_by_its_path() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("two.csv");
        std::fs::write(&path, "region,a,b\r\na,0,5\r\nb,5,0\r\n").expect("written");
        let topology = Topology::load(path.to_str().expect("UTF-8")).expect("fine");
        assert_eq!(topology.round_trip(1, 0), Duration::from_millis(5));
    }
}
