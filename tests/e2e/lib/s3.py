"""A small S3 client with its own SigV4 signer: makes buckets, looks at what the server put there, counts requests with nobody's help."""
import datetime
import hashlib
import hmac
import http.client
import time
import urllib.parse
import xml.etree.ElementTree as xml

NS = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class S3:
    def __init__(self, host, port, access_key, secret_key, region="us-east-1"):
        self.host, self.port, self.access_key, self.secret_key, self.region = host, port, access_key, secret_key, region

    def request(self, method, path, query=None, body=b"", headers=None, timeout=30):
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        path = urllib.parse.quote(path, safe="/-_.~")
        query = "&".join(sorted(urllib.parse.quote(k, safe="-_.~") + "=" + urllib.parse.quote(str(v), safe="-_.~") for k, v in (query or {}).items()))
        h = {k.lower(): v for k, v in (headers or {}).items()}
        h.update({"host": f"{self.host}:{self.port}", "x-amz-date": stamp, "x-amz-content-sha256": hashlib.sha256(body).hexdigest()})
        names = ";".join(sorted(h))
        canonical = "\n".join([method, path, query, "".join(f"{k}:{h[k]}\n" for k in sorted(h)), names, h["x-amz-content-sha256"]])
        scope = f"{day}/{self.region}/s3/aws4_request"
        to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = b"AWS4" + self.secret_key.encode()
        for part in (day, self.region, "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
        h["authorization"] = f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        conn = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            conn.request(method, path + ("?" + query if query else ""), body=body, headers=h)
            r = conn.getresponse()
            return r.status, dict(r.headers), r.read()
        finally:
            conn.close()

    def _ok(self, method, path, query=None, body=b"", allowed=(200, 204)):
        status, _, content = self.request(method, path, query, body)
        if status not in allowed:
            raise OSError(f"S3 {method} {path}: {status} {content[:300]!r}")
        return content

    def create_bucket(self, bucket):
        for _ in range(100):
            if self.request("PUT", f"/{bucket}")[0] != 503:  # MinIO is ready a moment before it is initialized
                break
            time.sleep(0.1)
        self._ok("PUT", f"/{bucket}", allowed=(200, 409))

    def list(self, bucket, prefix=""):
        """{key: size}"""
        out, token = {}, None
        while True:
            q = {"list-type": 2, "prefix": prefix}
            if token:
                q["continuation-token"] = token
            tree = xml.fromstring(self._ok("GET", f"/{bucket}", q))
            for c in tree.iter(NS + "Contents"):
                out[c.find(NS + "Key").text] = int(c.find(NS + "Size").text)
            token = tree.find(NS + "NextContinuationToken")
            if token is None:
                return out
            token = token.text

    def uploads(self, bucket):
        """Keys of unfinished multipart uploads."""
        tree = xml.fromstring(self._ok("GET", f"/{bucket}", {"uploads": ""}))
        return [c.find(NS + "Key").text for c in tree.iter(NS + "Upload")]

    def get(self, bucket, key):
        return self._ok("GET", f"/{bucket}/{key}")

    def put(self, bucket, key, body):
        self._ok("PUT", f"/{bucket}/{key}", body=body)

    def delete(self, bucket, key):
        self._ok("DELETE", f"/{bucket}/{key}")

    def download(self, bucket, directory, prefix=""):
        """Copies every object below `directory`, which becomes what a FILESYSTEM bucket would be."""
        for key in self.list(bucket, prefix):
            path = directory / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.get(bucket, key))

    def upload(self, bucket, directory, prefix=""):
        for path in sorted(directory.rglob("*"), key=lambda p: (p.name == "meta.json", str(p))):
            if path.is_file():
                self.put(bucket, prefix + path.relative_to(directory).as_posix(), path.read_bytes())
