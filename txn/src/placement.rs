//! Which nodes a tablet's replicas go to.
//!
//! A pure function of the placement that was asked for, the cluster's nodes and where the replicas
//! are now. It moves as little as it can: a replica that may stay stays. Beyond that the leader
//! comes first, then the voters are spread over as many regions as there are, in the order in which
//! the placement names them, then the nearest first.

use meridian_replication::{Placement, PlacementChange};
use meridian_storage::NodeId;

use crate::error::TxnError;
use crate::node::Member;
use crate::tablet::Target;

/// The most voters that a tablet may have.
const MAX_VOTERS: u8 = 9;

/// Where a tablet's replicas are, or for a new one, where they should begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Current<'a> {
    pub(crate) voters: &'a [NodeId],
    pub(crate) read_only: &'a [NodeId],
    pub(crate) preferred_leader: NodeId,
}

/// The placement of tables that ask for nothing, in a cluster of these nodes.
///
/// # Errors
/// [`TxnError::Refused`] when the nodes can't satisfy it.
pub fn default_placement(
    voters: usize,
    change: PlacementChange,
    members: &[Member],
) -> Result<Placement, TxnError> {
    let voters = u8::try_from(voters).unwrap_or(u8::MAX);
    let placement = Placement { voters, ..Placement::default() }.with(change);
    let preferred_leader = members.first().map_or(NodeId::new(0), |member| member.id);
    let current = Current { voters: &[], read_only: &[], preferred_leader };
    allocate(&placement, members, current)?;
    Ok(placement)
}

fn refused(message: impl Into<String>) -> TxnError {
    TxnError::refused(message, "meridian.nodes shows the nodes and their regions.")
}

/// The target that satisfies `placement`, and who should lead.
pub(crate) fn allocate(
    placement: &Placement,
    members: &[Member],
    current: Current<'_>,
) -> Result<(Target, NodeId), TxnError> {
    check_regions(placement, members)?;
    let wanted = usize::from(placement.voters);
    let rank = |region: &str| placement.regions.iter().position(|known| known == region);
    let allowed = |member: &&Member| placement.regions.is_empty() || rank(&member.region).is_some();
    let mut candidates: Vec<&Member> = members.iter().filter(allowed).collect();
    candidates.sort_by_key(|member| {
        let stays = current.voters.contains(&member.id);
        (!stays, rank(&member.region), member.round_trip, member.id)
    });
    if wanted == 0 || placement.voters > MAX_VOTERS {
        return Err(refused(format!(
            "a tablet has from 1 to {MAX_VOTERS} voters, not {}",
            placement.voters
        )));
    }
    if candidates.len() < wanted {
        let regions = if placement.regions.is_empty() {
            "the cluster has".to_owned()
        } else {
            format!("the regions {} have", placement.regions.join(", "))
        };
        return Err(refused(format!(
            "{wanted} voters were asked for, but {regions} {} nodes",
            candidates.len()
        )));
    }
    let leads = |member: &&&Member| {
        placement.leader_region.as_ref().is_none_or(|region| *region == member.region)
    };
    let mut may_lead = candidates.iter().filter(leads);
    let leader = may_lead
        .clone()
        .find(|member| member.id == current.preferred_leader)
        .or_else(|| may_lead.next())
        .ok_or_else(|| refused("the leader's region is not among the voters' regions"))?;
    let mut chosen: Vec<&Member> = vec![leader];
    while chosen.len() < wanted {
        let in_region = |region: &str| chosen.iter().filter(|m| m.region == region).count();
        let free = candidates.iter().filter(|m| !chosen.iter().any(|c| c.id == m.id));
        // The first of those whose region has the fewest; candidates come in order of preference.
        let Some(next) = free.min_by_key(|member| in_region(&member.region)) else { break };
        chosen.push(next);
    }
    let voters: Vec<NodeId> = chosen.iter().map(|member| member.id).collect();
    let mut read_only = Vec::new();
    for region in &placement.read_only {
        let mut here = members.iter().filter(|member| {
            member.region == *region
                && !voters.contains(&member.id)
                && !read_only.contains(&member.id)
        });
        let stays = here.clone().find(|member| current.read_only.contains(&member.id));
        let node = stays.or_else(|| here.next()).ok_or_else(|| {
            refused(format!("region {region} has no further node for a read-only replica"))
        })?;
        read_only.push(node.id);
    }
    Ok((Target { voters, read_only }, leader.id))
}

fn check_regions(placement: &Placement, members: &[Member]) -> Result<(), TxnError> {
    let named = placement.regions.iter().chain(&placement.read_only);
    for region in named.chain(&placement.leader_region) {
        if !members.iter().any(|member| member.region == *region) {
            let mut known: Vec<&str> = members.iter().map(|m| m.region.as_str()).collect();
            known.sort_unstable();
            known.dedup();
            return Err(TxnError::refused(
                format!("there is no node in region {region}"),
                format!("The regions are {}.", known.join(", ")),
            ));
        }
    }
    for (position, region) in placement.regions.iter().enumerate() {
        if placement.regions[..position].contains(region) {
            return Err(refused(format!("region {region} is named twice")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Six nodes, two in each region; as node 1 sees them.
    fn members() -> Vec<Member> {
        [("us", 0), ("eu", 80), ("asia", 150), ("us", 1), ("eu", 81), ("asia", 151)]
            .into_iter()
            .zip(1..)
            .map(|((region, millis), id)| Member {
                id: NodeId::new(id),
                region: region.to_owned(),
                round_trip: Duration::from_millis(millis),
            })
            .collect()
    }

    fn nodes(numbers: &[u64]) -> Vec<NodeId> {
        numbers.iter().copied().map(NodeId::new).collect()
    }

    fn place(placement: &Placement, voters: &[u64], leader: u64) -> Result<String, String> {
        let (voters, read_only) = (nodes(voters), nodes(&[]));
        let preferred_leader = NodeId::new(leader);
        let current = Current { voters: &voters, read_only: &read_only, preferred_leader };
        let (target, leader) =
            allocate(placement, &members(), current).map_err(|error| error.to_string())?;
        let list = |nodes: &[NodeId]| {
            let list: Vec<String> = nodes.iter().map(|node| node.get().to_string()).collect();
            list.join(" ")
        };
        Ok(format!("{}|{}|{}", list(&target.voters), list(&target.read_only), leader.get()))
    }

    fn three() -> Placement {
        Placement { voters: 3, ..Placement::default() }
    }

    fn names(regions: &[&str]) -> Vec<String> {
        regions.iter().map(|region| (*region).to_owned()).collect()
    }

    #[test]
    fn a_new_tablet_spreads_over_the_regions_from_its_leader() {
        assert_eq!(place(&three(), &[], 1), Ok("1 2 3||1".to_owned()));
        assert_eq!(place(&three(), &[], 5), Ok("5 1 3||5".to_owned()));
        let five = Placement { voters: 5, ..Placement::default() };
        assert_eq!(place(&five, &[], 1), Ok("1 2 3 4 5||1".to_owned()));
    }

    #[test]
    fn what_may_stay_stays() {
        assert_eq!(place(&three(), &[6, 4, 5], 4), Ok("4 5 6||4".to_owned()));
        let led = Placement { leader_region: Some("eu".to_owned()), ..three() };
        assert_eq!(place(&led, &[6, 4, 5], 4), Ok("5 4 6||5".to_owned()));
    }

    #[test]
    fn regions_are_kept_to() {
        let placement = Placement { regions: names(&["eu", "us"]), ..three() };
        assert_eq!(place(&placement, &[1, 2, 3], 1), Ok("1 2 5||1".to_owned()));
        assert_eq!(place(&placement, &[1, 2, 3], 3), Ok("2 1 5||2".to_owned()));
        let read_only = Placement { read_only: names(&["asia"]), ..placement };
        assert_eq!(place(&read_only, &[1, 2, 3], 1), Ok("1 2 5|3|1".to_owned()));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let cases = [
            (Placement { regions: names(&["mars"]), ..three() }, "no node in region mars"),
            (Placement { regions: names(&["eu"]), ..three() }, "but the regions eu have 2 nodes"),
            (Placement { voters: 7, ..three() }, "but the cluster has 6 nodes"),
            (Placement { voters: 0, ..three() }, "from 1 to 9"),
            (Placement { voters: 10, ..three() }, "from 1 to 9"),
            (Placement { read_only: names(&["eu", "eu"]), ..three() }, "no further node"),
            (Placement { regions: names(&["eu", "eu"]), ..three() }, "named twice"),
            (
                Placement {
                    regions: names(&["eu", "us"]),
                    leader_region: Some("asia".to_owned()),
                    ..three()
                },
                "not among",
            ),
        ];
        for (placement, part) in cases {
            let error = place(&placement, &[1, 2, 3], 1).expect_err("can't be");
            assert!(error.contains(part), "{placement:?}: {error}");
        }
    }
}
