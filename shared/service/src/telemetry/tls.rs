//! Whom a collector's certificate has to come from, and who we are to it. Without a word about it, certificates are
//! checked as those of every other server.

use std::path::PathBuf;
use std::time::Duration;

use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig, Identity};

/// PEM files that the standard's variables name.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Files {
    /// Instead of the authorities of the system.
    pub(super) authority: Option<File>,
    pub(super) certificate: Option<File>,
    pub(super) key: Option<File>,
}

/// A file, and which variable names it.
#[derive(Debug, PartialEq)]
pub(super) struct File {
    pub(super) variable: String,
    pub(super) path: PathBuf,
}

impl File {
    fn read(&self) -> Result<Vec<u8>, String> {
        std::fs::read(&self.path)
            .map_err(|error| format!("{}: {}: {error}", self.variable, self.path.display()))
    }

    fn is_wrong(&self) -> String {
        format!("{}: {} does not hold what it should, as PEM", self.variable, self.path.display())
    }
}

impl Files {
    /// The certificate that is ours, and its key.
    fn identity(&self) -> Result<Option<[&File; 2]>, String> {
        match (&self.certificate, &self.key) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => Ok(Some([certificate, key])),
            (Some(one), None) | (None, Some(one)) => {
                Err(format!("{}: a client's certificate and its key go together", one.variable))
            }
        }
    }

    /// For gRPC.
    pub(super) fn grpc(&self) -> Result<ClientTlsConfig, String> {
        let tls = match &self.authority {
            Some(file) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(file.read()?)),
            None => ClientTlsConfig::new().with_enabled_roots(),
        };
        Ok(match self.identity()? {
            Some([certificate, key]) => tls.identity(Identity::from_pem(certificate.read()?, key.read()?)),
            None => tls,
        })
    }

    /// For HTTP: a client that waits so long for an answer.
    pub(super) fn http(&self, patience: Duration) -> Result<reqwest::Client, String> {
        let mut builder =
            reqwest::Client::builder().timeout(patience).redirect(reqwest::redirect::Policy::none());
        if let Some(file) = &self.authority {
            let authorities = reqwest::Certificate::from_pem_bundle(&file.read()?).unwrap_or_default();
            if authorities.is_empty() {
                return Err(file.is_wrong());
            }
            builder = builder.tls_certs_only(authorities);
        }
        if let Some([certificate, key]) = self.identity()? {
            let both = [certificate.read()?, b"\n".to_vec(), key.read()?].concat();
            let identity = reqwest::Identity::from_pem(&both);
            builder = builder.identity(identity.map_err(|_| certificate.is_wrong())?);
        }
        builder.build().map_err(|error| error.without_url().to_string())
    }
}
