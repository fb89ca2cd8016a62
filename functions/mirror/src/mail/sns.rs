//! Publishes to a topic of SNS, which mails it to its subscribers.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use shared::http_client;

use super::text::Mail;
use crate::aws::{RequestError, Service, Signer, error_code, is_region};

/// The maximum size of the body of an error in bytes.
const MAX_ERROR_BODY: usize = 64 << 10;

/// The ARN of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopicArn(String);

impl TopicArn {
    /// Parses the ARN of a standard topic. A FIFO topic can't send mail.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let ["arn", partition, "sns", region, account, name] = parts[..] else { return None };
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let is_valid = partition.starts_with("aws")
            && partition.bytes().all(is_name)
            && is_region(region)
            && account.len() == 12
            && account.bytes().all(|b| b.is_ascii_digit())
            && (1..=256).contains(&name.len())
            && name.bytes().all(is_name);
        is_valid.then(|| Self(text.to_owned()))
    }

    fn region(&self) -> &str {
        self.0.split(':').nth(3).unwrap_or_default()
    }
}

/// A topic, and what signs the requests to it.
pub(crate) struct Topic {
    arn: TopicArn,
    signer: Signer,
    http: reqwest::Client,
}

/// A mail that was not sent, as far as is known.
#[derive(Debug)]
pub(super) struct NotSent {
    pub(super) cause: String,
    pub(super) remedy: &'static str,
}

impl From<RequestError> for NotSent {
    fn from(error: RequestError) -> Self {
        Self { cause: error.cause.to_owned(), remedy: error.remedy }
    }
}

impl Topic {
    /// Creates a topic without access to it. Credentials and the endpoint come from the environment.
    pub(crate) fn new(arn: TopicArn, http: reqwest::Client) -> Self {
        Self { arn, signer: Signer::new(shared::aws::config(http.clone()), Service::Sns), http }
    }

    /// Publishes a mail within `timeout`. It isn't sent a second time, because the next run does that.
    pub(super) async fn publish(&self, mail: &Mail, timeout: Duration) -> Result<(), NotSent> {
        let request = reqwest::Request::try_from(self.request(mail).await?.map(reqwest::Body::from));
        let mut request = request.map_err(|_| invalid())?;
        *request.timeout_mut() = Some(timeout);
        let response = self.http.execute(request).await.map_err(|error| NotSent {
            cause: http_client::cause(&error).to_owned(),
            remedy: "Check that this function's network has access to SNS. The next run tries again",
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let body = http_client::read_body(response, MAX_ERROR_BODY).await.unwrap_or_default();
        let code = error_code(&body);
        let cause = match code {
            Some(code) => format!("SNS responded with {} ({code})", status.as_u16()),
            None => format!("SNS responded with {}", status.as_u16()),
        };
        Err(NotSent { cause, remedy: remedy(code.unwrap_or_default()) })
    }

    /// Returns a signed request.
    async fn request(&self, mail: &Mail) -> Result<Request<Bytes>, RequestError> {
        let endpoint = self.signer.custom_endpoint();
        let endpoint = endpoint.unwrap_or_else(|| format!("https://{}", self.signer.host(self.arn.region())));
        let url = self.signer.parse_url(&format!("{endpoint}/"))?;
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("Action", "Publish")
            .append_pair("Version", "2010-03-31")
            .append_pair("TopicArn", &self.arn.0)
            .append_pair("Subject", &mail.subject)
            .append_pair("Message", &mail.body)
            .finish();
        let request = Request::post(url.as_str())
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8")
            .body(Bytes::from(form))
            .map_err(|_| invalid())?;
        self.signer.sign(request, self.arn.region()).await
    }
}

fn invalid() -> RequestError {
    RequestError::new("the request is invalid", "Check REPORT_TOPIC_ARN and AWS_ENDPOINT_URL_SNS")
}

/// Returns what to do about an error with this code.
fn remedy(code: &str) -> &'static str {
    match code {
        "AuthorizationError" | "AccessDenied" => "Allow this function sns:Publish on the topic in REPORT_TOPIC_ARN",
        "NotFound" | "InvalidParameter" => "Let REPORT_TOPIC_ARN name an existing topic, or set REPORTS=none",
        "ExpiredToken" | "InvalidClientTokenId" | "SignatureDoesNotMatch" => "Check the AWS credentials and the clock",
        _ if code.starts_with("KMS") => {
            "Allow this function kms:Decrypt and kms:GenerateDataKey on the key of the topic in REPORT_TOPIC_ARN"
        }
        _ => "The next run tries again",
    }
}

shared::unprintable!(Topic);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use aws_credential_types::Credentials;
    use aws_credential_types::provider::SharedCredentialsProvider;
    use aws_types::SdkConfig;
    use aws_types::region::Region;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn topic_is_a_standard_topic_by_its_arn() {
        for arn in ["arn:aws:sns:us-east-1:123456789012:bridge-Alarms-1A_b", "arn:aws-cn:sns:cn-north-1:123456789012:a"]
        {
            assert_eq!(TopicArn::parse(arn).map(|arn| arn.0).as_deref(), Some(arn));
        }
        for arn in [
            "",
            "alarms",
            "arn:aws:sns:us-east-1:123456789012",
            "arn:aws:sns:us-east-1:123456789012:",
            "arn:aws:sns:us-east-1:123456789012:a:b",
            "arn:aws:sns:us-east-1:123456789012:a.fifo",
            "arn:aws:sns:us.east:123456789012:a",
            "arn:aws:sns::123456789012:a",
            "arn:aws:sns:us-east-1:1234:a",
            "arn:aws:sqs:us-east-1:123456789012:a",
            "arn:gcp:sns:us-east-1:123456789012:a",
            " arn:aws:sns:us-east-1:123456789012:a",
        ] {
            assert_eq!(TopicArn::parse(arn), None, "{arn}");
        }
    }

    #[tokio::test]
    async fn request_goes_to_the_region_of_the_topic_or_to_the_endpoint() {
        let body = "Zoë & 100 % + more\n".to_owned();
        let mail = Mail { subject: "novi-bridge: 1 joined".to_owned(), body };
        for (endpoint, expected) in
            [(None, "https://sns.eu-west-1.amazonaws.com/"), (Some("http://127.0.0.1:5000"), "http://127.0.0.1:5000/")]
        {
            let mut config = SdkConfig::builder().region(Region::new("us-east-1"));
            config.set_endpoint_url(endpoint.map(str::to_owned));
            let credentials = Credentials::new("id", "secret", None, None, "test");
            let config = config.credentials_provider(SharedCredentialsProvider::new(credentials)).build();
            let request = topic(config).request(&mail).await.unwrap();
            assert_eq!(request.uri(), expected);
            let form: Vec<(String, String)> = url::form_urlencoded::parse(request.body()).into_owned().collect();
            let form: Vec<(&str, &str)> = form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let arn = "arn:aws:sns:eu-west-1:123456789012:alarms";
            assert_eq!(
                form,
                [
                    ("Action", "Publish"),
                    ("Version", "2010-03-31"),
                    ("TopicArn", arn),
                    ("Subject", &mail.subject),
                    ("Message", &mail.body)
                ]
            );
            let authorization = request.headers()[header::AUTHORIZATION].to_str().unwrap();
            assert!(authorization.contains("/eu-west-1/sns/aws4_request"), "{authorization}");
        }
        let error = topic(SdkConfig::builder().build()).request(&mail).await.unwrap_err();
        assert_eq!(error.cause, "there are no AWS credentials");
        let error = topic(SdkConfig::builder().endpoint_url("sns").build()).request(&mail).await.unwrap_err();
        assert_eq!(error.cause, "AWS_ENDPOINT_URL_SNS or AWS_ENDPOINT_URL isn't valid");
    }

    fn topic(config: SdkConfig) -> Topic {
        http_client::install_tls_provider();
        let arn = TopicArn::parse("arn:aws:sns:eu-west-1:123456789012:alarms").unwrap();
        let http = http_client::build(http_client::tls_config(&[]).unwrap()).unwrap();
        Topic { arn, signer: Signer::new(config, Service::Sns), http }
    }

    /// Returns the result of publishing to a server that reads the request, and then sends the response or nothing.
    async fn publish_to(response: Option<&'static str>) -> Result<(), NotSent> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4_096]).await;
            match response {
                Some(response) => stream.write_all(response.as_bytes()).await.unwrap(),
                None => std::future::pending().await,
            }
            std::future::pending::<()>().await;
        };
        let credentials = Credentials::new("id", "secret", None, None, "test");
        let config = SdkConfig::builder()
            .endpoint_url(format!("http://127.0.0.1:{port}"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .build();
        let topic = topic(config);
        let mail = Mail { subject: "s".to_owned(), body: "b".to_owned() };
        let timeout = if response.is_some() { Duration::from_secs(30) } else { Duration::from_millis(50) };
        tokio::select! {
            () = server => unreachable!("it never ends"),
            result = topic.publish(&mail, timeout) => result,
        }
    }

    #[tokio::test]
    async fn failure_has_a_cause_and_quotes_no_message() {
        let error = publish_to(None).await.unwrap_err();
        assert_eq!(error.cause, "timed out");
        let refused = "HTTP/1.1 403 Forbidden\r\ncontent-length: 95\r\n\r\n<ErrorResponse><Error><Code>AuthorizationError\
                       </Code><Message>ada@example.org</Message></Error>";
        let error = publish_to(Some(refused)).await.unwrap_err();
        assert_eq!(error.cause, "SNS responded with 403 (AuthorizationError)");
        assert_eq!(error.remedy, "Allow this function sns:Publish on the topic in REPORT_TOPIC_ARN");
        let broken = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 2\r\n\r\nno";
        assert_eq!(publish_to(Some(broken)).await.unwrap_err().cause, "SNS responded with 502");
        assert!(publish_to(Some("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")).await.is_ok());
    }

    #[test]
    fn error_says_what_to_do() {
        for (code, expected) in [
            ("AuthorizationError", "sns:Publish"),
            ("NotFound", "existing topic"),
            ("KMSAccessDenied", "kms:GenerateDataKey"),
            ("ExpiredToken", "credentials"),
            ("Throttled", "The next run tries again"),
        ] {
            assert!(remedy(code).contains(expected), "{code}");
        }
    }
}
