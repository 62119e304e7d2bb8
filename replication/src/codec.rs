//! How this crate encodes its messages and records.

use std::io;

use bytes::Bytes;
use meridian_storage::StorageError;
use serde::{Deserialize, Serialize};

/// Encodes a message or record of this crate.
pub(crate) fn encode<T: Serialize>(value: &T) -> io::Result<Bytes> {
    postcard::to_stdvec(value)
        .map(Bytes::from)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Decodes what [`encode`] made.
pub(crate) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> io::Result<T> {
    postcard::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// A storage's error as openraft takes it.
pub(crate) fn to_io(error: StorageError) -> io::Error {
    io::Error::other(error)
}
