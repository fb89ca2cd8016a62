//! Signed requests for one object in S3.

use aws_types::SdkConfig;
use bytes::Bytes;
use http::{HeaderName, Method, Request};
use url::Url;

use crate::aws::{RequestError, Service, Signer};

/// An object in S3, and what signs the requests for it.
pub(super) struct S3Object {
    signer: Signer,
    bucket: String,
    key: String,
}

impl S3Object {
    pub(super) fn new(config: SdkConfig, bucket: &str, key: &str) -> Self {
        Self { signer: Signer::new(config, Service::S3), bucket: bucket.to_owned(), key: key.to_owned() }
    }

    /// Returns a signed request for the object, with a condition on its version.
    pub(super) async fn request(
        &self,
        method: Method,
        condition: Option<(HeaderName, &str)>,
        body: Bytes,
    ) -> Result<Request<Bytes>, RequestError> {
        let mut request = Request::builder().method(method).uri(self.url()?.as_str());
        if let Some((name, value)) = condition {
            request = request.header(name, value);
        }
        let request = request.body(body).map_err(|_| RequestError::new("the request is invalid", "Check LEDGER"))?;
        self.signer.sign(request, self.signer.region()?).await
    }

    /// Returns the URL of the object.
    fn url(&self) -> Result<Url, RequestError> {
        let (bucket, key) = (&self.bucket, &self.key);
        let url = if let Some(endpoint) = self.signer.custom_endpoint() {
            // Servers other than AWS's often have no name for each bucket.
            format!("{endpoint}/{bucket}/{key}")
        } else {
            let host = self.signer.host(self.signer.region()?);
            // A certificate for all buckets isn't valid for a name with more dots.
            if bucket.contains('.') {
                format!("https://{host}/{bucket}/{key}")
            } else {
                format!("https://{bucket}.{host}/{key}")
            }
        };
        self.signer.parse_url(&url)
    }
}

shared::unprintable!(S3Object);

#[cfg(test)]
mod tests {
    use aws_types::region::Region;

    use super::*;

    fn object(config: aws_types::sdk_config::Builder, bucket: &str) -> S3Object {
        S3Object::new(config.build(), bucket, "mirror/ledger")
    }

    fn url(config: aws_types::sdk_config::Builder, bucket: &str) -> Result<String, &'static str> {
        object(config, bucket).url().map(String::from).map_err(|error| error.cause)
    }

    #[test]
    fn url_follows_the_region_and_the_endpoint() {
        let region = |region: &'static str| SdkConfig::builder().region(Region::new(region));
        for (config, bucket, expected) in [
            (region("eu-west-1"), "idaa", "https://idaa.s3.eu-west-1.amazonaws.com/mirror/ledger"),
            (region("eu-west-1"), "id.aa", "https://s3.eu-west-1.amazonaws.com/id.aa/mirror/ledger"),
            (region("cn-north-1"), "idaa", "https://idaa.s3.cn-north-1.amazonaws.com.cn/mirror/ledger"),
            (
                region("us-east-1").use_fips(true).use_dual_stack(true),
                "idaa",
                "https://idaa.s3-fips.dualstack.us-east-1.amazonaws.com/mirror/ledger",
            ),
            (
                region("us-east-1").endpoint_url("http://127.0.0.1:5000/"),
                "idaa",
                "http://127.0.0.1:5000/idaa/mirror/ledger",
            ),
            (
                SdkConfig::builder().endpoint_url("https://minio.lan/s3"),
                "idaa",
                "https://minio.lan/s3/idaa/mirror/ledger",
            ),
        ] {
            assert_eq!(url(config, bucket).as_deref(), Ok(expected));
        }
        assert_eq!(url(SdkConfig::builder(), "idaa"), Err("there is no AWS region"));
        assert_eq!(url(region("a/b c"), "idaa"), Err("AWS_REGION isn't a region"));
        let endpoint_error = Err("AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL isn't valid");
        for endpoint in ["localhost:9000", "ftp://host", "https://host?x", "s3"] {
            assert_eq!(url(region("us-east-1").endpoint_url(endpoint), "idaa"), endpoint_error, "{endpoint}");
        }
    }
}
