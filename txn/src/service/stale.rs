//! Reads at replicas that need not lead.

use bytes::Bytes;
use meridian_storage::TabletId;
use meridian_truetime::{Timestamp, Work};

use super::{answer, hull};
use crate::command::{ReadAt, Row, ScanRequest, ScanResult, Stale};
use crate::error::TxnError;
use crate::node::Node;

impl Node {
    pub(super) async fn serve_stale(&self, stale: Stale) -> Bytes {
        match stale {
            Stale::Get { tablet, keys, at } => answer(self.serve_stale_get(tablet, keys, at).await),
            Stale::Scan { tablet, scan } => answer(self.serve_stale_scan(tablet, scan).await),
            Stale::SafeTime { tablet } => answer(self.fresh_safe_time(tablet)),
        }
    }

    async fn serve_stale_get(
        &self,
        tablet: TabletId,
        keys: Vec<Vec<u8>>,
        at: Timestamp,
    ) -> Result<Vec<Option<Row>>, TxnError> {
        self.env().work(Work::Read(keys.len() as u64)).await;
        let read = self.open_stale(tablet, at, &hull(&keys)?).await?;
        Self::rows(&read, keys)
    }

    async fn serve_stale_scan(
        &self,
        tablet: TabletId,
        scan: ScanRequest,
    ) -> Result<ScanResult, TxnError> {
        let ReadAt::Exact(at) = scan.at else {
            return Err(TxnError::Internal("a stale read at no timestamp".to_owned()));
        };
        let read = self.open_stale(tablet, at, &scan.range).await?;
        self.scanned(&read, &scan).await
    }
}
