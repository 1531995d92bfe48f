# Certificates, accounts and settings of the servers' TLS and SASL listeners. Sourced by tests/servers.
# shellcheck shell=bash

# The account that client certificates, passwords over TLS and tokens stand for, on every server.
TLS_USER=backstop_client
TLS_PASSWORD=tls-secret

# tls_leaf NAME AUTHORITY KIND SUBJECT DAYS: a key, and a certificate that the authority signed
tls_leaf() {
    openssl req -new -config openssl.cnf -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
        -keyout "$1.key" -subj "/CN=$4" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA "$2.pem" -CAkey "$2.key" -set_serial "0x$(openssl rand -hex 8)" \
        -days "$5" -extfile openssl.cnf -extensions "$3" -out "$1.pem"
    rm "$1.csr"
}

# tls_authority NAME SUBJECT
tls_authority() {
    openssl req -x509 -config openssl.cnf -extensions authority -newkey ec \
        -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$1.key" -subj "/CN=$2" -days 3650 -out "$1.pem"
}

tls_write() {
    cat >openssl.cnf <<'EOF'
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost,IP:127.0.0.1
[client]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = clientAuth
EOF
    tls_authority ca 'Backstop test authority'
    tls_authority stranger-ca 'An authority that no server knows'
    tls_leaf server ca server localhost 3650
    tls_leaf client ca client "$TLS_USER" 3650
    tls_leaf expired ca client "$TLS_USER" -1
    tls_leaf stranger stranger-ca client "$TLS_USER" 3650
    # What is not there signs nothing more.
    rm ca.key stranger-ca.key
    chmod 644 ./*.key
}

# Makes the authorities and certificates, once: tests that run have their paths.
make_certificates() {
    local dir=$BASE/tls log=$BASE/tls.log
    [[ ! -d $dir ]] || return 0
    command -v openssl >/dev/null || die "openssl is not in PATH; run 'tests/servers up'"
    rm -rf "$dir.part"
    mkdir "$dir.part"
    # `set -e` does not hold inside a condition, so that the outcome is looked at afterwards.
    (cd "$dir.part" && set -e && tls_write) >"$log" 2>&1 &
    wait $! || die_with_log "$log" "openssl could not make the certificates" "see the log"
    mv "$dir.part" "$dir"
}

# tls_files NAME: the server's key and certificate where its account, and only that, reads them
tls_files() {
    locked tls make_certificates
    install -m 644 "$BASE/tls/ca.pem" "$BASE/tls/server.pem" "$BASE/$1/"
    install -m 600 "$BASE/tls/server.key" "$BASE/$1/server.key"
    cat "$BASE/tls/server.key" "$BASE/tls/server.pem" >"$BASE/$1/server-with-key.pem"
    if is_root; then chown "$(account "$1"):" "$BASE/$1/server.key"; fi
}

# ---------------------------------------------------------------------------------------------
# PostgreSQL: the same port; one account must use TLS, another one a client certificate too
# ---------------------------------------------------------------------------------------------

tls_postgres_conf() {
    cat <<EOF
ssl = on
ssl_cert_file = '$BASE/postgres/server.pem'
ssl_key_file = '$BASE/postgres/server.key'
ssl_ca_file = '$BASE/postgres/ca.pem'
EOF
}

tls_postgres_hba() {
    cat <<EOF
hostssl all          $TLS_USER    127.0.0.1/32  cert
hostssl all          backstop_tls       127.0.0.1/32  scram-sha-256
host    all          $TLS_USER,backstop_tls  127.0.0.1/32  reject
EOF
}

tls_postgres_accounts() {
    [[ ! -e $BASE/postgres/initialized-tls ]] || return 0
    pg_admin -d backstop >>"$(log_of postgres)" 2>&1 <<EOF || return 1
CREATE ROLE $TLS_USER LOGIN;
CREATE ROLE backstop_tls LOGIN PASSWORD '$TLS_PASSWORD';
GRANT CREATE ON DATABASE backstop TO $TLS_USER, backstop_tls;
EOF
    touch "$BASE/postgres/initialized-tls"
}

# ---------------------------------------------------------------------------------------------
# RabbitMQ: one TLS port; a client may show a certificate, and then log in with it
# ---------------------------------------------------------------------------------------------

tls_rabbitmq_conf() {
    cat <<EOF
listeners.ssl.local = 127.0.0.1:$BACKSTOP_AMQPS_PORT
ssl_options.cacertfile = $BASE/rabbitmq/ca.pem
ssl_options.certfile = $BASE/rabbitmq/server.pem
ssl_options.keyfile = $BASE/rabbitmq/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = AMQPLAIN
auth_mechanisms.3 = EXTERNAL
EOF
}

# rabbitmq_put PATH JSON: one change through the management API
rabbitmq_put() {
    # shellcheck disable=SC2016
    timeout 10 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$1"
        printf "PUT /api/%s HTTP/1.0\r\nAuthorization: Basic %s\r\nContent-Type: application/json\r\nContent-Length: %s\r\n\r\n%s" \
            "$2" "$3" "${#4}" "$4" >&3
        read -r reply <&3; [[ $reply == *" 20"[0-9]" "* ]]' \
        _ "$BACKSTOP_RABBITMQ_API_PORT" "$1" "$(printf guest:guest | base64)" "$2"
}

# The account has no password: only a certificate lets it in.
tls_rabbitmq_accounts() {
    rabbitmq_put "users/$TLS_USER" '{"password_hash":"","tags":""}' &&
        rabbitmq_put "permissions/%2f/$TLS_USER" '{"configure":".*","write":".*","read":".*"}'
}

# ---------------------------------------------------------------------------------------------
# Kafka: a port for client certificates, a port for three SASL mechanisms over TLS
# ---------------------------------------------------------------------------------------------

tls_kafka_listeners() {
    echo "SSL://127.0.0.1:$BACKSTOP_KAFKA_SSL_PORT,SASL_SSL://127.0.0.1:$BACKSTOP_KAFKA_SASL_PORT"
}

# The token check is Kafka's own for development: it takes tokens that nobody signed.
tls_kafka_properties() {
    local module=org.apache.kafka.common.security
    cat <<EOF
ssl.keystore.type=PEM
ssl.keystore.location=$BASE/kafka/server-with-key.pem
ssl.truststore.type=PEM
ssl.truststore.location=$BASE/kafka/ca.pem
listener.name.ssl.ssl.client.auth=required
listener.name.sasl_ssl.ssl.client.auth=none
# A client logs in again after that, or when its token ends, if this is sooner.
listener.name.sasl_ssl.oauthbearer.connections.max.reauth.ms=3600000
listener.name.sasl_ssl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512,OAUTHBEARER
listener.name.sasl_ssl.plain.sasl.jaas.config=$module.plain.PlainLoginModule required user_$TLS_USER="$TLS_PASSWORD";
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=$module.scram.ScramLoginModule required;
listener.name.sasl_ssl.oauthbearer.sasl.jaas.config=$module.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";
EOF
}

tls_kafka_accounts() {
    [[ ! -e $BASE/kafka/initialized-tls ]] || return 0
    kafka_tool kafka.admin.ConfigCommand --bootstrap-server "127.0.0.1:$BACKSTOP_KAFKA_ADMIN_PORT" \
        --command-config "$BASE/kafka/admin.properties" --alter --entity-type users --entity-name "$TLS_USER" \
        --add-config "SCRAM-SHA-512=[password=$TLS_PASSWORD]" >>"$(log_of kafka)" 2>&1 || return 1
    touch "$BASE/kafka/initialized-tls"
}

# ---------------------------------------------------------------------------------------------

tls_env() {
    # Verifying the name in a certificate needs the name, hence localhost.
    echo "export BACKSTOP_TEST_POSTGRES_TLS=localhost:$BACKSTOP_PG_PORT"
    echo "export BACKSTOP_TEST_AMQPS=localhost:$BACKSTOP_AMQPS_PORT"
    echo "export BACKSTOP_TEST_KAFKA_SSL=127.0.0.1:$BACKSTOP_KAFKA_SSL_PORT"
    echo "export BACKSTOP_TEST_KAFKA_SASL=127.0.0.1:$BACKSTOP_KAFKA_SASL_PORT"
    echo "export BACKSTOP_TEST_TLS_USER=$TLS_USER"
    echo "export BACKSTOP_TEST_TLS_PASSWORD=$TLS_PASSWORD"
    printf 'export BACKSTOP_TEST_TLS=%q\n' "$BASE/tls"
}
