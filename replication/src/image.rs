//! The image of a replica's state: what a snapshot ships.
//!
//! Rows with all their versions and the state machine's records, as a sequence of chunks of about
//! [`CHUNK`] bytes. The last one carries a checksum over all before it, so that an image that lost
//! its tail or its order is refused. The same image makes the same chunks each time, so that
//! shipping it can go on where it was interrupted.

use std::io;

use bytes::Bytes;
use meridian_storage::{DataSnapshot, KeyRange, WriteBatch};
use meridian_truetime::Timestamp;
use serde::{Deserialize, Serialize};

use crate::codec::{decode, encode, to_io};

/// The size that a chunk aims at.
const CHUNK: usize = 256 << 10;

type Versions = Vec<(Vec<u8>, Timestamp, Option<Vec<u8>>)>;

#[derive(Debug, Serialize, Deserialize)]
enum Chunk {
    Records(Vec<(Vec<u8>, Vec<u8>)>),
    Rows(Versions),
    End { checksum: u32 },
}

/// An image, either still in the data file of the node that sends it or received in chunks.
#[derive(Clone, Debug)]
pub(crate) enum Image {
    Local { view: DataSnapshot, range: KeyRange, records: Vec<u8> },
    Received(Vec<Bytes>),
}

impl Image {
    pub(crate) fn of(view: DataSnapshot, range: KeyRange, records: Vec<u8>) -> Self {
        Self::Local { view, range, records }
    }

    /// The image's chunks in order, made as they are asked for.
    pub(crate) fn chunks(self) -> Box<dyn Iterator<Item = io::Result<Bytes>> + Send> {
        match self {
            Self::Received(chunks) => Box::new(chunks.into_iter().map(Ok)),
            Self::Local { view, range, records } => match Chunks::new(&view, &range, &records) {
                Ok(chunks) => Box::new(chunks),
                Err(error) => Box::new(std::iter::once(Err(error))),
            },
        }
    }

    /// The records of a received image: its first chunk.
    pub(crate) fn records_of(first: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        match decode(first)? {
            Chunk::Records(records) => Ok(records),
            _ => Err(invalid("a snapshot does not begin with its records")),
        }
    }

    /// The rows' range, unless it was received.
    pub(crate) fn range(&self) -> Option<&KeyRange> {
        match self {
            Self::Local { range, .. } => Some(range),
            Self::Received(_) => None,
        }
    }

    /// Whether a chunk is an image's last.
    pub(crate) fn ends_with(chunk: &[u8]) -> bool {
        matches!(decode(chunk), Ok(Chunk::End { .. }))
    }

    /// The records of this image, if it was received.
    pub(crate) fn records(&self) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        match self {
            Self::Received(chunks) => match chunks.first() {
                Some(first) => Self::records_of(first),
                None => Err(invalid("an empty snapshot")),
            },
            Self::Local { view, records, .. } => {
                view.records(records).map_err(to_io)?.collect::<Result<_, _>>().map_err(to_io)
            }
        }
    }

    /// Adds to a batch what replaces a replica's state, the rows of `ranges` and the records, by this
    /// image.
    pub(crate) fn add_to(
        self,
        batch: &mut WriteBatch,
        old: &DataSnapshot,
        ranges: impl IntoIterator<Item = KeyRange>,
        records: &[u8],
    ) -> io::Result<()> {
        for range in ranges {
            batch.clear_range(range);
        }
        for record in old.records(records).map_err(to_io)? {
            batch.delete_record(record.map_err(to_io)?.0);
        }
        let mut hasher = crc32fast::Hasher::new();
        let mut complete = false;
        for bytes in self.chunks() {
            let bytes = bytes?;
            if complete {
                return Err(invalid("data after the end of a snapshot"));
            }
            match decode(&bytes)? {
                Chunk::Records(records) => {
                    for (name, value) in records {
                        batch.put_record(name, value);
                    }
                }
                Chunk::Rows(rows) => {
                    for (key, at, value) in rows {
                        batch.put(key, at, value);
                    }
                }
                Chunk::End { checksum } => {
                    if checksum != hasher.clone().finalize() {
                        return Err(invalid("a snapshot's checksum does not match"));
                    }
                    complete = true;
                }
            }
            hasher.update(&bytes);
        }
        if complete { Ok(()) } else { Err(invalid("a snapshot ends too early")) }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

type VersionIter = Box<
    dyn Iterator<
            Item = Result<(Vec<u8>, Timestamp, Option<Vec<u8>>), meridian_storage::StorageError>,
        > + Send,
>;

struct Chunks {
    records: Option<Vec<(Vec<u8>, Vec<u8>)>>,
    rows: VersionIter,
    hasher: crc32fast::Hasher,
    ended: bool,
}

impl Chunks {
    fn new(view: &DataSnapshot, range: &KeyRange, records: &[u8]) -> io::Result<Self> {
        let records = view.records(records).map_err(to_io)?;
        let records = records.collect::<Result<_, _>>().map_err(to_io)?;
        let rows = view.versions(range).map_err(to_io)?;
        Ok(Self {
            records: Some(records),
            rows: Box::new(rows),
            hasher: crc32fast::Hasher::new(),
            ended: false,
        })
    }

    fn next_chunk(&mut self) -> io::Result<Chunk> {
        if let Some(records) = self.records.take() {
            return Ok(Chunk::Records(records));
        }
        let mut rows = Versions::new();
        let mut size = 0;
        while size < CHUNK {
            let Some(row) = self.rows.next() else { break };
            let (key, at, value) = row.map_err(to_io)?;
            size += key.len() + value.as_ref().map_or(0, Vec::len) + 16;
            rows.push((key, at, value));
        }
        if rows.is_empty() {
            self.ended = true;
            return Ok(Chunk::End { checksum: self.hasher.clone().finalize() });
        }
        Ok(Chunk::Rows(rows))
    }
}

impl Iterator for Chunks {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let chunk = self.next_chunk().and_then(|chunk| encode(&chunk));
        match &chunk {
            Ok(bytes) => self.hasher.update(bytes),
            Err(_) => self.ended = true,
        }
        Some(chunk)
    }
}
