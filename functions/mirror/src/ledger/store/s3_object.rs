//! Signed requests for one object in S3.
//!
//! The signer is the one of AWS's SDK. Only two requests are needed here, and the crate `object_store` would add a
//! megabyte to the function, most of it tables for checksums. The SDK's own client of S3 has the same tables.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningParams, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use aws_types::SdkConfig;
use aws_types::service_config::ServiceConfigKey;
use bytes::Bytes;
use http::{HeaderName, Method, Request};
use url::Url;

/// The reason why a request can't be made, with the remedy.
pub(super) struct RequestError {
    pub(super) cause: &'static str,
    pub(super) remedy: &'static str,
}

impl RequestError {
    const fn new(cause: &'static str, remedy: &'static str) -> Self {
        Self { cause, remedy }
    }
}

/// An object in S3, and what signs the requests for it.
pub(super) struct S3Object {
    config: SdkConfig,
    bucket: String,
    key: String,
}

impl S3Object {
    pub(super) fn new(config: SdkConfig, bucket: &str, key: &str) -> Self {
        Self { config, bucket: bucket.to_owned(), key: key.to_owned() }
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
        let credentials = match self.config.credentials_provider() {
            Some(provider) => provider.provide_credentials().await.ok(),
            None => None,
        };
        let credentials = credentials.ok_or(RequestError::new(
            "there are no AWS credentials",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, as Lambda does",
        ))?;
        signed(request, self.region()?, credentials, SystemTime::now())
    }

    fn region(&self) -> Result<&str, RequestError> {
        const REMEDY: &str = "Set AWS_REGION to the region of this function, as Lambda does";
        let region = self.config.region().map(AsRef::as_ref);
        let region = region.ok_or(RequestError::new("there is no AWS region", REMEDY))?;
        // A part of a host name.
        let is_valid = region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if is_valid { Ok(region) } else { Err(RequestError::new("AWS_REGION isn't a region", REMEDY)) }
    }

    /// Returns the URL of the object.
    fn url(&self) -> Result<Url, RequestError> {
        let (bucket, key) = (&self.bucket, &self.key);
        let url = if let Some(endpoint) = self.custom_endpoint() {
            // Servers other than AWS's often have no name for each bucket.
            format!("{}/{bucket}/{key}", endpoint.trim_end_matches('/'))
        } else {
            let region = self.region()?;
            let fips = if self.config.use_fips() == Some(true) { "-fips" } else { "" };
            let dual_stack = if self.config.use_dual_stack() == Some(true) { ".dualstack" } else { "" };
            let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
            let host = format!("s3{fips}{dual_stack}.{region}.{domain}");
            // A certificate for all buckets isn't valid for a name with more dots.
            if bucket.contains('.') {
                format!("https://{host}/{bucket}/{key}")
            } else {
                format!("https://{bucket}.{host}/{key}")
            }
        };
        let is_plain = |url: &Url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.query().is_none()
                && url.fragment().is_none()
        };
        // Only a custom endpoint can spoil it.
        Url::parse(&url).ok().filter(is_plain).ok_or(RequestError::new(
            "AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL isn't valid",
            "Set it to https://host, or unset it",
        ))
    }

    /// Returns `AWS_ENDPOINT_URL_S3`, or else `AWS_ENDPOINT_URL`.
    fn custom_endpoint(&self) -> Option<String> {
        let key = ServiceConfigKey::builder().service_id("S3").env("AWS_ENDPOINT_URL").profile("endpoint_url").build();
        let of_s3 = self.config.service_config().zip(key.ok()).and_then(|(settings, key)| settings.load_config(key));
        of_s3.or_else(|| self.config.endpoint_url().map(str::to_owned))
    }
}

/// Signs a request as S3 expects it: the path as it is, and a digest of the body in a header.
fn signed(
    mut request: Request<Bytes>,
    region: &str,
    credentials: Credentials,
    time: SystemTime,
) -> Result<Request<Bytes>, RequestError> {
    let failed = || RequestError::new("signing the request failed", "Check the AWS credentials and AWS_REGION");
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    let identity = credentials.into();
    let signing = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("s3")
        .time(time)
        .settings(settings)
        .build()
        .map_err(|_| failed())?;
    let uri = request.uri().to_string();
    let headers = request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    let signable = SignableRequest::new(request.method().as_str(), &uri, headers, SignableBody::Bytes(request.body()));
    let signable = signable.map_err(|_| failed())?;
    let (instructions, _) = sign(signable, &SigningParams::V4(signing)).map_err(|_| failed())?.into_parts();
    instructions.apply_to_request_http1x(&mut request);
    Ok(request)
}

shared::unprintable!(S3Object);

#[cfg(test)]
mod tests {
    use std::time::Duration;

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

    /// The request and the signature are the first example of "Authenticating Requests: Using the Authorization Header"
    /// in Amazon S3's API reference.
    #[test]
    fn signature_is_that_of_the_example_in_the_reference() {
        let credentials =
            Credentials::new("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", None, None, "test");
        let request = Request::get("https://examplebucket.s3.amazonaws.com/test.txt")
            .header(http::header::RANGE, "bytes=0-9")
            .body(Bytes::new())
            .unwrap();
        // 2013-05-24T00:00:00Z.
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_369_353_600);
        let signed = signed(request, "us-east-1", credentials, time).ok().unwrap();
        assert_eq!(
            signed.headers()[http::header::AUTHORIZATION],
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, \
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
    }
}
