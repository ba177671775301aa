//! A way to a collector that takes a certificate to trust, and may want one.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// A listener with TLS before a port. Dropping it stops it.
#[derive(Debug)]
pub struct Door {
    port: u16,
    /// With the certificates of the authority and of one of its clients.
    folder: TempDir,
    serving: JoinHandle<()>,
}

impl Door {
    /// Opens one that lets those in who have a certificate of its own authority.
    pub async fn before(port: u16) -> Self {
        let folder = TempDir::new().expect("a folder for certificates");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let issue = |name: &str| {
            let key = KeyPair::generate().expect("a key");
            let params = CertificateParams::new([name.to_owned()]).expect("parameters");
            (params.signed_by(&key, &authority).expect("a certificate"), key)
        };
        let (certificate, key) = issue("client");
        let write =
            |name: &str, text: String| std::fs::write(folder.path().join(name), text).expect("a file");
        write("authority", authority.pem());
        write("certificate", certificate.pem());
        write("key", key.serialize_pem());
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).expect("a root");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let wants = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build();
        let (certificate, key) = issue("localhost");
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(wants.expect("a verifier"))
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
            )
            .expect("a certificate");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let own = listener.local_addr().expect("an address").port();
        let serving = tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config)), port));
        Self { port: own, folder, serving }
    }

    /// Its base, without a slash at the end.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// The file with its authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.path("authority")
    }

    /// The files with a client's certificate and its key.
    pub fn identity(&self) -> [PathBuf; 2] {
        [self.path("certificate"), self.path("key")]
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::join(self.folder.path(), name)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Passes on what comes from those whom it lets in.
async fn serve(listener: TcpListener, acceptor: TlsAcceptor, port: u16) {
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(mut inside) = acceptor.accept(stream).await else { return };
            let Ok(mut next) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
            // However it ends, both sides see it.
            let _ = copy_bidirectional(&mut inside, &mut next).await;
        });
    }
}
