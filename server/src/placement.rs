//! Where replicas go when a table asks for nothing, as a command line says it.

use clap::Args;
use meridian_txn::PlacementChange;

/// What `demo` is told.
#[derive(Clone, Debug, Args)]
pub struct PlacementArgs {
    /// How many replicas of a table's tablets vote, where the table doesn't say [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=9))]
    pub voters: Option<u8>,
    /// The regions that these may be in, the preferred ones first [default: any]
    #[arg(long, value_name = "REGION,...", value_delimiter = ',')]
    pub regions: Option<Vec<String>>,
    /// The region that leads such tables whenever it can [default: where the table was created]
    #[arg(long, value_name = "REGION")]
    pub leader_region: Option<String>,
    /// Regions that have a replica each that follows without voting
    #[arg(long, value_name = "REGION,...", value_delimiter = ',')]
    pub read_only: Option<Vec<String>>,
}

impl From<PlacementArgs> for PlacementChange {
    fn from(args: PlacementArgs) -> Self {
        Self {
            voters: args.voters,
            regions: args.regions,
            read_only: args.read_only,
            leader_region: args.leader_region.map(Some),
        }
    }
}
