//! One export on its way to the collector.

use std::io::{self, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use prost::Message as _;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use url::Url;

use super::Target;
use crate::config::OtlpProtocol;
use crate::telemetry::destination::Destination;
use crate::telemetry::export::without_urls;

/// The way to the collector. It connects when there is something to send.
pub(super) enum Sender {
    Http { client: reqwest::Client, endpoint: Url, headers: HeaderMap, gzip: bool },
    Grpc { client: Box<MetricsServiceClient<Channel>>, headers: MetadataMap },
}

impl Sender {
    pub(super) fn new(target: &Target) -> Result<Self, String> {
        let Destination { protocol, endpoint, files, headers, gzip, .. } = &target.to;
        let headers = headers.clone();
        match protocol {
            OtlpProtocol::Http => {
                let client = files.http(target.timeout)?;
                Ok(Self::Http { client, endpoint: endpoint.clone(), headers, gzip: *gzip })
            }
            OtlpProtocol::Grpc => {
                let said = |error: tonic::transport::Error| without_urls(&format!("the endpoint: {error}"));
                let mut channel = Endpoint::from_shared(endpoint.to_string()).map_err(said)?;
                if target.to.tls() {
                    channel = channel.tls_config(files.grpc()?).map_err(said)?;
                }
                let mut client = MetricsServiceClient::new(channel.timeout(target.timeout).connect_lazy());
                if *gzip {
                    client = client.send_compressed(CompressionEncoding::Gzip);
                }
                Ok(Self::Grpc { client: Box::new(client), headers: MetadataMap::from_headers(headers) })
            }
        }
    }

    /// What went wrong, without a secret.
    pub(super) async fn send(&self, request: ExportMetricsServiceRequest) -> Result<(), String> {
        match self {
            Self::Http { client, endpoint, headers, gzip } => {
                let plain = request.encode_to_vec();
                let request = client.post(endpoint.clone()).headers(headers.clone());
                let request = request.header(CONTENT_TYPE, "application/x-protobuf");
                let request = if *gzip {
                    let body = packed(&plain).map_err(|error| error.to_string())?;
                    request.header(CONTENT_ENCODING, "gzip").body(body)
                } else {
                    request.body(plain)
                };
                let answer = request.send().await;
                let answer = answer.map_err(|error| reason(&error.without_url()))?;
                let status = answer.status();
                if status.is_success() { Ok(()) } else { Err(format!("it answered {status}")) }
            }
            Self::Grpc { client, headers } => {
                let mut request = tonic::Request::new(request);
                *request.metadata_mut() = headers.clone();
                let answer = client.clone().export(request).await;
                answer
                    .map(drop)
                    .map_err(|status| without_urls(&format!("{}: {}", status.code(), status.message())))
            }
        }
    }
}

/// What lies behind an error, too.
fn reason(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    without_urls(&causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
}

fn packed(plain: &[u8]) -> io::Result<Vec<u8>> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(plain)?;
    packer.finish()
}
