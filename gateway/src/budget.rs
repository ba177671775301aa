//! The memory that all request bodies may take together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;

/// Counts the bytes that are held.
#[derive(Debug, Default)]
pub(crate) struct Budget(AtomicUsize);

/// A part of the budget; given back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Arc<Budget>,
    bytes: usize,
}

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is larger than one body may be.
    TooLarge,
    /// All bodies together are.
    OutOfMemory,
    /// It broke off, or stopped coming.
    Incomplete,
}

/// What one reading is bounded by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) body: usize,
    pub(crate) total: usize,
    pub(crate) idle: std::time::Duration,
}

impl Held {
    fn grow(&mut self, bytes: usize, total: usize) -> Result<(), Refused> {
        if self.budget.0.fetch_add(bytes, AcqRel) + bytes > total {
            self.budget.0.fetch_sub(bytes, AcqRel);
            return Err(Refused::OutOfMemory);
        }
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.bytes, AcqRel);
    }
}

impl Budget {
    /// Bytes that are held now.
    pub(crate) fn held(&self) -> usize {
        self.0.load(Acquire)
    }
}

/// Reads a body into memory, refusing it as soon as a limit is passed. `announced` is its `content-length`.
pub(crate) async fn read(
    mut body: Body,
    announced: Option<usize>,
    limits: Limits,
    budget: &Arc<Budget>,
) -> Result<(Bytes, Held), Refused> {
    let mut held = Held { budget: budget.clone(), bytes: 0 };
    if announced.is_some_and(|bytes| bytes > limits.body) {
        return Err(Refused::TooLarge);
    }
    let mut first: Option<Bytes> = None;
    let mut joined = BytesMut::new();
    let mut len = 0;
    loop {
        let next = tokio::time::timeout(limits.idle, body.frame()).await.map_err(|_| Refused::Incomplete)?;
        let Some(frame) = next else { break };
        let Ok(data) = frame.map_err(|_| Refused::Incomplete)?.into_data() else { continue };
        len += data.len();
        if len > limits.body {
            return Err(Refused::TooLarge);
        }
        held.grow(data.len(), limits.total)?;
        // Most bodies are one frame: keep it as it is. Only a second one makes it worth copying.
        match first.take() {
            None if joined.is_empty() => first = Some(data),
            None => joined.extend_from_slice(&data),
            Some(start) => {
                joined.reserve(announced.unwrap_or_default().max(start.len() + data.len()));
                joined.extend_from_slice(&start);
                joined.extend_from_slice(&data);
            }
        }
    }
    Ok((first.unwrap_or_else(|| joined.freeze()), held))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { body: 10, total: 17, idle: std::time::Duration::from_secs(10) };

    #[tokio::test]
    async fn one_body_and_all_bodies_have_their_limits() {
        let budget = Arc::new(Budget::default());
        let chunks = |n: usize| {
            Body::from_stream(futures_util::stream::iter((0..n).map(|_| Ok::<_, std::io::Error>("abcd"))))
        };
        let read = async |body, announced| read(body, announced, LIMITS, &budget).await;
        let (bytes, held) = read(chunks(2), None).await.unwrap();
        assert_eq!((bytes.as_ref(), budget.held()), (b"abcdabcd".as_slice(), 8));
        assert_eq!(read(chunks(3), None).await.unwrap_err(), Refused::TooLarge);
        assert_eq!(read(Body::from("x"), Some(11)).await.unwrap_err(), Refused::TooLarge);
        let second = read(chunks(2), None).await.unwrap();
        assert_eq!(read(chunks(1), None).await.unwrap_err(), Refused::OutOfMemory);
        assert_eq!(budget.held(), 16, "what was refused is not counted");
        drop((held, second));
        assert_eq!(budget.held(), 0);
    }
}
