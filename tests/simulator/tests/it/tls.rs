//! HTTPS: a certificate that only those trust who were given it, and the protocol that the client asks for.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use keyfleet_simulator::{Action, Rule, World};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::client::{HELLO, NATIVE, SOON, gemini};

async fn connect(
    to: std::net::SocketAddr,
    trusted: Option<&str>,
    alpn: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    if let Some(pem) = trusted {
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    }
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(to).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await
}

#[tokio::test]
async fn alpn_chooses_the_protocol_and_the_certificate_is_needed() {
    let gemini = gemini(World { tls: true, ..World::pool(1, 1) }).await;
    let (address, secret) = (gemini.address(), gemini.world().secrets().remove(0));
    assert_eq!(gemini.url(), format!("https://{address}"));
    let certificate = gemini.certificate().unwrap();
    assert!(connect(address, None, b"h2").await.is_err(), "nobody else trusts it");
    let request = |url: &str| {
        let request = http::Request::post(url).header("host", "x").header("x-goog-api-key", &secret);
        request.body(Full::<Bytes>::from(HELLO)).unwrap()
    };

    let stream = connect(address, Some(certificate), b"h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (executor, io) = (TokioExecutor::new(), TokioIo::new(stream));
    let (mut h2, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let url = format!("{}{NATIVE}", gemini.url());
    for _ in 0..2 {
        assert_eq!(h2.send_request(request(&url)).await.unwrap().status(), 200);
    }
    let upload = http::Request::post(format!("{}/upload/v1beta/files", gemini.url()))
        .header("x-goog-api-key", &secret)
        .header("x-goog-upload-command", "start")
        .body(Full::<Bytes>::from("{}"))
        .unwrap();
    let begun = h2.send_request(upload).await.unwrap();
    assert!(begun.headers()["x-goog-upload-url"].to_str().unwrap().starts_with("https://"));

    let stream = connect(address, Some(certificate), b"http/1.1").await.unwrap();
    let (mut h1, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let answer = h1.send_request(request(NATIVE)).await.unwrap();
    assert!(answer.collect().await.unwrap().to_bytes().starts_with(b"{"));
    let log = gemini.log();
    assert_eq!(log.iter().map(|r| r.http2).collect::<Vec<_>>(), [true, true, true, false]);
    assert!(log[0].conn == log[2].conn && log[2].conn != log[3].conn);

    gemini.add_rule(Rule::new(Action::Reset));
    assert!(h1.ready().await.is_ok() && h1.send_request(request(NATIVE)).await.is_err());
    drop((h1, h2, begun));
    assert!(gemini.until(SOON, |gemini| gemini.stats().open_connections == 0).await);
}
