//! The memory that all request bodies may take together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt as _;

/// The least room for a body that comes in more than one piece; from there it doubles.
const STEP: usize = 64 * 1024;

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
    /// Takes so many more.
    pub(crate) fn grow(&mut self, bytes: usize, total: usize) -> Result<(), Refused> {
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

/// Room for `needed` bytes and some more, but never for more than will come. An announcement alone is worth none: it
/// costs the client nothing.
fn room(needed: usize, announced: Option<usize>, limits: Limits) -> usize {
    let most = announced.unwrap_or(limits.body);
    needed.saturating_mul(2).max(STEP).min(most).max(needed)
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
    let mut joined: Vec<u8> = Vec::new();
    let mut len = 0;
    loop {
        let next = tokio::time::timeout(limits.idle, body.frame()).await.map_err(|_| Refused::Incomplete)?;
        let Some(frame) = next else { break };
        let Ok(data) = frame.map_err(|_| Refused::Incomplete)?.into_data() else { continue };
        len += data.len();
        if len > limits.body {
            return Err(Refused::TooLarge);
        }
        // Most bodies are one frame: keep it as it is. Only a second one makes it worth copying.
        if len == data.len() {
            held.grow(len, limits.total)?;
            first = Some(data);
            continue;
        }
        if len > joined.capacity() {
            let room = room(len, announced, limits);
            held.grow(room - held.bytes, limits.total)?;
            joined.reserve_exact(room - joined.len());
        }
        if let Some(start) = first.take() {
            joined.extend_from_slice(&start);
        }
        joined.extend_from_slice(&data);
    }
    Ok((first.unwrap_or_else(|| joined.into()), held))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { body: 10, total: 18, idle: std::time::Duration::from_secs(10) };

    fn chunks(n: usize) -> Body {
        Body::from_stream(futures_util::stream::iter((0..n).map(|_| Ok::<_, std::io::Error>("abcd"))))
    }

    #[tokio::test]
    async fn one_body_and_all_bodies_have_their_limits() {
        let budget = Arc::new(Budget::default());
        let read = async |body, announced| read(body, announced, LIMITS, &budget).await;
        let (bytes, held) = read(chunks(2), Some(8)).await.unwrap();
        assert_eq!((bytes.as_ref(), budget.held()), (b"abcdabcd".as_slice(), 8));
        assert_eq!(read(chunks(3), None).await.unwrap_err(), Refused::TooLarge);
        assert_eq!(read(Body::from("x"), Some(11)).await.unwrap_err(), Refused::TooLarge);
        let mut second = read(chunks(2), Some(8)).await.unwrap();
        assert_eq!(read(chunks(1), None).await.unwrap_err(), Refused::OutOfMemory);
        assert_eq!(second.1.grow(8, LIMITS.total), Err(Refused::OutOfMemory), "nor a copy");
        assert_eq!(budget.held(), 16, "what was refused is not counted");
        drop((held, second));
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test]
    async fn an_announcement_takes_no_memory_before_the_bytes_come() {
        let budget = Arc::new(Budget::default());
        let limits = Limits { body: 1 << 30, total: 1 << 30, ..LIMITS };
        let bodies = [(1, 4), (2, STEP), (STEP / 4, STEP), (STEP / 4 + 1, 2 * (STEP + 4))];
        for (pieces, taken) in bodies {
            let (bytes, _held) = read(chunks(pieces), Some(1 << 29), limits, &budget).await.unwrap();
            assert_eq!((bytes.len(), budget.held()), (4 * pieces, taken), "{pieces} pieces");
        }
    }

    #[tokio::test]
    async fn what_is_counted_is_what_is_taken() {
        let budget = Arc::new(Budget::default());
        let limits = Limits { body: 1 << 30, total: 1 << 30, ..LIMITS };
        let (bytes, _held) = read(chunks(STEP), Some(4 * STEP), limits, &budget).await.unwrap();
        let bytes = Vec::from(bytes);
        assert_eq!((bytes.capacity(), budget.held()), (4 * STEP, 4 * STEP));
    }
}
