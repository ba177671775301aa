//! One bounded queue, and a thread that empties it to the collector.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use opentelemetry_otlp::{
    Compression, SpanExporter as OtlpExporter, WithExportConfig as _, WithHttpConfig as _,
    WithTonicConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tonic::metadata::MetadataMap;

use super::Record;
use super::destination::Destination;
use super::settings::Target;
use crate::config::OtlpProtocol;

/// What waits for the collector.
pub(super) struct Exporter {
    waiting: Mutex<Waiting>,
    /// Enough for a batch waits.
    batch: Notify,
    flushes: mpsc::Sender<oneshot::Sender<()>>,
    dropped: AtomicU64,
    /// Taken from the queue, and not sent yet.
    under_way: AtomicU64,
    target: Target,
}

#[derive(Default)]
struct Waiting {
    records: Vec<Box<dyn Record>>,
    spans: usize,
}

impl Exporter {
    /// Takes a record, unless the queue is full: then it is dropped, since the collector is too slow for what is newer
    /// as well.
    pub(super) fn push(&self, record: Box<dyn Record>) {
        let spans = record.spans();
        let mut waiting = self.waiting.lock();
        let all = waiting.spans + spans;
        if all > self.target.queue {
            drop(waiting);
            self.drop_spans(spans);
            return;
        }
        let is_batch = waiting.spans < self.target.batch && all >= self.target.batch;
        waiting.spans = all;
        waiting.records.push(record);
        drop(waiting);
        if is_batch {
            self.batch.notify_one();
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Spans that are neither sent nor dropped.
    pub(super) fn unsent(&self) -> u64 {
        self.waiting.lock().spans as u64 + self.under_way.load(Relaxed)
    }

    /// Returns when what waits now is sent or dropped.
    pub(super) async fn flush(&self) {
        let (done, is_done) = oneshot::channel();
        if self.flushes.send(done).await.is_ok() {
            // The thread ends with the process.
            let _ = is_done.await;
        }
    }

    fn drop_spans(&self, spans: usize) {
        self.dropped.fetch_add(spans as u64, Relaxed);
    }

    fn take(&self) -> Vec<SpanData> {
        let Waiting { records, spans } = std::mem::take(&mut *self.waiting.lock());
        let mut out = Vec::with_capacity(spans);
        for record in records {
            record.write(&mut out);
        }
        self.under_way.store(out.len() as u64, Relaxed);
        out
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").field("dropped", &self.dropped()).finish_non_exhaustive()
    }
}

/// Starts the thread. It has a runtime of its own, so that neither side can hold the other up.
pub(super) fn start(resource: &Resource, target: Target) -> Result<Arc<Exporter>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("there is no thread to send them with: {error}"))?;
    // The way to a gRPC collector belongs to the runtime that it is made in.
    let mut sender = runtime.block_on(async { sender(&target) })?;
    sender.set_resource(resource);
    let (flushes, asked) = mpsc::channel(1);
    let (waiting, batch, dropped) = (Mutex::default(), Notify::new(), AtomicU64::new(0));
    let exporter =
        Arc::new(Exporter { waiting, batch, flushes, dropped, under_way: AtomicU64::new(0), target });
    let sending = Sending { exporter: exporter.clone(), sender, is_away: false };
    let thread = std::thread::Builder::new().name("traces".to_owned());
    let spawned = thread.spawn(move || runtime.block_on(sending.run(asked)));
    spawned.map_err(|error| format!("there is no thread to send them with: {error}"))?;
    Ok(exporter)
}

fn sender(target: &Target) -> Result<OtlpExporter, String> {
    let builder = OtlpExporter::builder();
    let Destination { protocol, endpoint, files, headers, gzip, patience } = &target.to;
    let built = match protocol {
        OtlpProtocol::Http => {
            let headers = headers.iter().filter_map(|(name, value)| {
                Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
            });
            let builder = builder.with_http().with_protocol(opentelemetry_otlp::Protocol::HttpBinary);
            let builder = builder.with_http_client(files.http(*patience)?).with_headers(headers.collect());
            let builder = if *gzip { builder.with_compression(Compression::Gzip) } else { builder };
            builder.with_endpoint(endpoint.as_str()).build()
        }
        OtlpProtocol::Grpc => {
            let builder = builder.with_tonic().with_metadata(MetadataMap::from_headers(headers.clone()));
            let builder = if target.to.tls() { builder.with_tls_config(files.grpc()?) } else { builder };
            let builder = if *gzip { builder.with_compression(Compression::Gzip) } else { builder };
            builder.with_endpoint(endpoint.as_str()).build()
        }
    };
    built.map_err(|error| without_urls(&error.to_string()))
}

/// The thread's side.
struct Sending {
    exporter: Arc<Exporter>,
    sender: OtlpExporter,
    is_away: bool,
}

impl Sending {
    async fn run(mut self, mut asked: mpsc::Receiver<oneshot::Sender<()>>) {
        loop {
            let flush = tokio::select! {
                flush = asked.recv() => match flush {
                    Some(flush) => Some(flush),
                    None => return,
                },
                () = self.exporter.batch.notified() => None,
                () = tokio::time::sleep(self.exporter.target.delay) => None,
            };
            let mut spans = self.exporter.take();
            while !spans.is_empty() {
                let rest = spans.split_off(spans.len().min(self.exporter.target.batch));
                self.send(std::mem::replace(&mut spans, rest)).await;
                self.exporter.under_way.store(spans.len() as u64, Relaxed);
            }
            if let Some(flush) = flush {
                // Who asked may have lost patience.
                let _ = flush.send(());
            }
        }
    }

    /// Sends one batch; a second time only as the SDK's exporter does within its time.
    async fn send(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len();
        let sent = tokio::time::timeout(self.exporter.target.timeout, self.sender.export(batch)).await;
        let problem = match sent {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(without_urls(&error.to_string())),
            Err(_) => Some("it did not answer in time".to_owned()),
        };
        if let Some(problem) = &problem {
            self.exporter.drop_spans(spans);
            if !self.is_away {
                tracing::warn!(
                    problem,
                    "the trace collector does not take spans: they are dropped and counted; nothing else waits"
                );
            }
        } else if self.is_away {
            tracing::info!(dropped = self.exporter.dropped(), "the trace collector takes spans again");
        }
        self.is_away = problem.is_some();
    }
}

/// URLs may hold credentials.
pub(super) fn without_urls(text: &str) -> String {
    let words = text.split_whitespace().map(|word| if word.contains("://") { "<url>" } else { word });
    words.collect::<Vec<_>>().join(" ")
}
