//! Signed requests to AWS.
//!
//! The signer is the one of AWS's SDK. Only three requests are needed here, two of S3 and one of SNS. The crate
//! `object_store` would add a megabyte to the function, most of it tables for checksums. The SDK's own client of S3 has the
//! same tables.

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
use http::Request;
use url::Url;

/// The reason why a request can't be made, with the remedy.
#[derive(Debug)]
pub(crate) struct RequestError {
    pub(crate) cause: &'static str,
    pub(crate) remedy: &'static str,
}

impl RequestError {
    pub(crate) const fn new(cause: &'static str, remedy: &'static str) -> Self {
        Self { cause, remedy }
    }
}

/// A service of AWS.
#[derive(Clone, Copy)]
pub(crate) enum Service {
    S3,
    Sns,
}

impl Service {
    /// The id by which the environment names it, as in `AWS_ENDPOINT_URL_S3`.
    const fn id(self) -> &'static str {
        match self {
            Self::S3 => "S3",
            Self::Sns => "SNS",
        }
    }

    /// The name by which requests are signed, which is also the first part of its host names.
    const fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Sns => "sns",
        }
    }

    const fn endpoint_error(self) -> RequestError {
        let cause = match self {
            Self::S3 => "AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL isn't valid",
            Self::Sns => "AWS_ENDPOINT_URL_SNS or AWS_ENDPOINT_URL isn't valid",
        };
        RequestError::new(cause, "Set it to https://host, or unset it")
    }
}

/// What signs the requests to a service.
pub(crate) struct Signer {
    config: SdkConfig,
    service: Service,
}

impl Signer {
    pub(crate) fn new(config: SdkConfig, service: Service) -> Self {
        Self { config, service }
    }

    /// Returns the region of this function.
    pub(crate) fn region(&self) -> Result<&str, RequestError> {
        const REMEDY: &str = "Set AWS_REGION to the region of this function, as Lambda does";
        let region = self.config.region().map(AsRef::as_ref);
        let region = region.ok_or(RequestError::new("there is no AWS region", REMEDY))?;
        if is_region(region) { Ok(region) } else { Err(RequestError::new("AWS_REGION isn't a region", REMEDY)) }
    }

    /// Returns the host name of the service in a region.
    pub(crate) fn host(&self, region: &str) -> String {
        let fips = if self.config.use_fips() == Some(true) { "-fips" } else { "" };
        let is_dual_stack = self.config.use_dual_stack() == Some(true);
        let is_chinese = region.starts_with("cn-");
        let name = self.service.name();
        match self.service {
            Service::S3 => {
                let dual_stack = if is_dual_stack { ".dualstack" } else { "" };
                let domain = if is_chinese { "amazonaws.com.cn" } else { "amazonaws.com" };
                format!("{name}{fips}{dual_stack}.{region}.{domain}")
            }
            Service::Sns => {
                let domain = match (is_dual_stack, is_chinese) {
                    (false, false) => "amazonaws.com",
                    (false, true) => "amazonaws.com.cn",
                    (true, false) => "api.aws",
                    (true, true) => "api.amazonwebservices.com.cn",
                };
                format!("{name}{fips}.{region}.{domain}")
            }
        }
    }

    /// Returns `AWS_ENDPOINT_URL_S3`, or that of another service, or else `AWS_ENDPOINT_URL`, without a slash at its end.
    pub(crate) fn custom_endpoint(&self) -> Option<String> {
        let key = ServiceConfigKey::builder().service_id(self.service.id()).env("AWS_ENDPOINT_URL");
        let key = key.profile("endpoint_url").build();
        let own = self.config.service_config().zip(key.ok()).and_then(|(settings, key)| settings.load_config(key));
        let endpoint = own.or_else(|| self.config.endpoint_url().map(str::to_owned))?;
        Some(endpoint.trim_end_matches('/').to_owned())
    }

    /// Parses the URL of a request. Only a custom endpoint can spoil it.
    pub(crate) fn parse_url(&self, url: &str) -> Result<Url, RequestError> {
        let is_plain = |url: &Url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.query().is_none()
                && url.fragment().is_none()
        };
        Url::parse(url).ok().filter(is_plain).ok_or(self.service.endpoint_error())
    }

    /// Signs a request to the service in a region.
    pub(crate) async fn sign(&self, request: Request<Bytes>, region: &str) -> Result<Request<Bytes>, RequestError> {
        let credentials = match self.config.credentials_provider() {
            Some(provider) => provider.provide_credentials().await.ok(),
            None => None,
        };
        let credentials = credentials.ok_or(RequestError::new(
            "there are no AWS credentials",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, as Lambda does",
        ))?;
        signed(request, self.service, region, credentials, SystemTime::now())
    }
}

/// True for what may be part of a host name.
pub(crate) fn is_region(region: &str) -> bool {
    !region.is_empty() && region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Signs a request as S3 expects it, which the other services accept: the path as it is, and a digest of the body in a
/// header.
fn signed(
    mut request: Request<Bytes>,
    service: Service,
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
        .name(service.name())
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

/// Returns the code in the body of an error, if it is a word.
pub(crate) fn error_code(body: &[u8]) -> Option<&str> {
    let (_, rest) = std::str::from_utf8(body).ok()?.split_once("<Code>")?;
    rest.split_once("</Code>").map(|(code, _)| code).filter(|code| is_word(code))
}

/// True for a short word, which can be shown wherever it came from.
pub(crate) fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
}

shared::unprintable!(Signer);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn host_follows_the_region_and_the_settings() {
        let host = |service, region, fips, dual_stack| {
            let config = SdkConfig::builder().use_fips(fips).use_dual_stack(dual_stack).build();
            Signer::new(config, service).host(region)
        };
        for (region, fips, dual_stack, s3, sns) in [
            ("eu-west-1", false, false, "s3.eu-west-1.amazonaws.com", "sns.eu-west-1.amazonaws.com"),
            ("cn-north-1", false, false, "s3.cn-north-1.amazonaws.com.cn", "sns.cn-north-1.amazonaws.com.cn"),
            ("us-east-1", true, true, "s3-fips.dualstack.us-east-1.amazonaws.com", "sns-fips.us-east-1.api.aws"),
        ] {
            assert_eq!(host(Service::S3, region, fips, dual_stack), s3);
            assert_eq!(host(Service::Sns, region, fips, dual_stack), sns);
        }
    }

    // 2013-05-24T00:00:00Z.
    const TIME: Duration = Duration::from_secs(1_369_353_600);

    fn authorization(request: Request<Bytes>, service: Service) -> String {
        let credentials =
            Credentials::new("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", None, None, "test");
        let signed = signed(request, service, "us-east-1", credentials, SystemTime::UNIX_EPOCH + TIME).unwrap();
        signed.headers()[http::header::AUTHORIZATION].to_str().unwrap().to_owned()
    }

    /// The request and the signature are the first example of "Authenticating Requests: Using the Authorization Header"
    /// in Amazon S3's API reference.
    #[test]
    fn signature_is_that_of_the_example_in_the_reference() {
        let request = Request::get("https://examplebucket.s3.amazonaws.com/test.txt")
            .header(http::header::RANGE, "bytes=0-9")
            .body(Bytes::new())
            .unwrap();
        assert_eq!(
            authorization(request, Service::S3),
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, \
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
    }

    /// The signature is the one that botocore makes.
    #[test]
    fn signature_for_sns_is_that_of_another_implementation() {
        let request = Request::post("https://sns.us-east-1.amazonaws.com/")
            .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8")
            .body(Bytes::from_static(b"Action=Publish&Version=2010-03-31&Subject=1+joined"))
            .unwrap();
        assert_eq!(
            authorization(request, Service::Sns),
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/sns/aws4_request, \
             SignedHeaders=content-type;host;x-amz-content-sha256;x-amz-date, \
             Signature=a3c117e4881e5ea0984455688754c8aaf3e6b21932fe02271593dfcb3558c596"
        );
    }
}
